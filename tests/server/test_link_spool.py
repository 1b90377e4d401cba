"""What the link keeps on disk, and what it refuses to keep."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.blobs import Blob
from discreet.common.errors import DataError
from discreet.server.link_spool import (
    DamagedError,
    OrderError,
    Spool,
    SupersededError,
    TaskFolder,
)

CONTENT = b"0123456789"
SHA256 = hashlib.sha256(CONTENT).digest()


@pytest.fixture
def task(tmp_path: Path) -> TaskFolder:
    return Spool(tmp_path).task(bytes(16))


def test_folders_are_their_owners_alone(tmp_path: Path) -> None:
    Spool(tmp_path / "link").task(b"t").save_result(b"x")

    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_dir()}

    assert modes == {"link": 0o700, "up": 0o700, "down": 0o700, "74": 0o700}


@settings(max_examples=30)
@given(
    content=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    breaks=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_an_upload_in_any_pieces_over_any_connections_is_the_blob(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int], breaks: list[bool]
) -> None:
    task = Spool(tmp_path_factory.mktemp("spool")).task(b"t")
    sha256 = hashlib.sha256(content).digest()
    bounds = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    upload = task.begin(sha256, size=len(content), offset=0, limit=100)

    for start, end, is_broken in zip(bounds, bounds[1:], breaks, strict=False):
        if is_broken:
            upload.close()
            offset = task.received(sha256)
            assert offset == start
            upload = task.begin(sha256, size=len(content), offset=offset, limit=100)
        upload.write(start, content[start:end])
    upload.finish()

    assert task.has(sha256, len(content))
    with task.open(sha256) as file:
        assert file.read() == content


def test_going_on_before_the_end_of_what_came_overwrites_it(task: TaskFolder) -> None:
    first = task.begin(SHA256, size=10, offset=0, limit=100)
    first.write(0, b"01xxxx")
    first.close()

    second = task.begin(SHA256, size=10, offset=2, limit=100)
    second.write(2, CONTENT[2:])
    second.finish()

    assert task.has(SHA256, 10)


def test_going_on_after_the_end_of_what_came_is_refused(task: TaskFolder) -> None:
    with pytest.raises(OrderError, match="go on at byte 0 or before, not at 3"):
        task.begin(SHA256, size=10, offset=3, limit=100)


def test_a_wrong_hash_throws_away_what_came(task: TaskFolder) -> None:
    upload = task.begin(SHA256, size=10, offset=0, limit=100)
    upload.write(0, b"9876543210")

    with pytest.raises(DamagedError):
        upload.finish()

    assert task.received(SHA256) == 0


def test_an_upload_of_a_broken_connection_cannot_write_any_more(task: TaskFolder) -> None:
    upload = task.begin(SHA256, size=10, offset=0, limit=100)
    upload.close()

    with pytest.raises(SupersededError):
        upload.write(0, b"0")
    with pytest.raises(SupersededError):
        upload.finish()


def test_an_upload_that_is_not_whole_is_not_finished(task: TaskFolder) -> None:
    upload = task.begin(SHA256, size=10, offset=0, limit=100)
    upload.write(0, CONTENT[:9])

    with pytest.raises(OrderError, match="1 bytes are missing"):
        upload.finish()
    upload.close()

    assert not task.has(SHA256, 10)
    assert task.received(SHA256) == 9


def test_an_upload_beyond_the_limit_is_refused(task: TaskFolder) -> None:
    task.begin(SHA256, size=10, offset=0, limit=10).close()

    with pytest.raises(DataError, match="at most 9 bytes, got 10"):
        task.begin(SHA256, size=10, offset=0, limit=9)


def test_a_result_is_there_after_a_restart(tmp_path: Path) -> None:
    Spool(tmp_path).task(b"t").save_result(b"reply")

    task = Spool(tmp_path).task(b"t")

    assert task.load_result() == b"reply"
    assert Spool(tmp_path).task(b"u").load_result() is None


def test_an_offer_is_written_once_and_forgotten_when_no_task_needs_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    blob, other = Blob.of([b"ab", b"c"]), Blob.of([b"d"])
    spool.offer(blob)
    path = tmp_path / "down" / blob.sha256.hex()
    written = path.stat().st_mtime_ns
    spool.offer(blob)
    spool.offer(other)
    spool.task(b"t").save_result(b"x")
    spool.task(b"u").save_result(b"x")

    assert path.stat().st_mtime_ns == written
    with spool.open_offer(blob.sha256) as file:
        assert file.read() == b"abc"
    spool.forget_all_but({b"t"}, {other.sha256})

    assert not path.exists()
    with spool.open_offer(other.sha256) as file:
        assert file.read() == b"d"
    assert spool.task(b"t").load_result() == b"x"
    assert spool.task(b"u").load_result() is None
