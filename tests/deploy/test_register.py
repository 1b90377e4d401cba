"""The register on the disk, and who is let in by it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from discreet.common.errors import DataError
from discreet.deploy.register import IssuedCertificate, Register, SiteCheck, locked, write_file

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NORTH = IssuedCertificate(
    serial="ab", kind="site", name="north", key="k1", not_after=NOW + timedelta(days=1)
)
SOUTH = NORTH.model_copy(update={"serial": "cd", "name": "south", "key": "k2"})
SERVER = NORTH.model_copy(update={"serial": "ef", "kind": "server", "name": "localhost"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "register.json"
    Register(certificates=(NORTH, SOUTH, SERVER)).write(path)
    return path


def check(path: Path, now: datetime = NOW) -> SiteCheck:
    return SiteCheck(path, lambda: now)


def revoked(entry: IssuedCertificate) -> IssuedCertificate:
    return entry.model_copy(update={"revoked_at": NOW})


def test_a_register_reads_back(path: Path) -> None:
    assert Register.read(path).certificates == (NORTH, SOUTH, SERVER)


@pytest.mark.parametrize(
    ("name", "serial", "is_allowed"),
    [
        ("north", 0xAB, True),
        ("south", 0xCD, True),
        ("north", 0xCD, False),  # another site's number
        ("north", 0xAC, False),  # unknown
        ("", 0xAB, False),
        ("localhost", 0xEF, False),  # the server is no site
        ("north", -1, False),
    ],
)
def test_a_site_is_let_in_by_its_name_and_its_number(
    name: str, serial: int, is_allowed: bool, path: Path
) -> None:
    assert check(path)(name, serial) is is_allowed


def test_a_certificate_that_ends_while_its_site_is_connected_ends_there(path: Path) -> None:
    assert check(path, NORTH.not_after)("north", 0xAB)
    assert not check(path, NORTH.not_after + timedelta(seconds=1))("north", 0xAB)


def test_a_revocation_within_one_tick_of_the_clock_is_seen(path: Path) -> None:
    allowed = check(path)
    # Of the same size and time as what it replaces: the file's number alone is another.
    Register(certificates=(SOUTH, NORTH, SERVER)).write(path)
    assert allowed("north", 0xAB)
    before = path.stat()

    Register(certificates=(SOUTH, NORTH.model_copy(update={"name": "nobod"}), SERVER)).write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not allowed("north", 0xAB)


def test_the_register_is_read_again_only_when_it_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real: Callable[[Path], Register] = Register.read

    def counted(path: Path) -> Register:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(Register, "read", counted)
    allowed = check(path)

    assert all(allowed("north", 0xAB) for _ in range(100))
    assert len(reads) == 1

    Register(certificates=(revoked(NORTH),)).write(path)
    assert not any(allowed("north", 0xAB) for _ in range(100))
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 9}', b"\xff"])
def test_a_damaged_register_lets_nobody_in_and_says_so(
    content: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = check(path)
    assert allowed("north", 0xAB)

    path.write_bytes(content)

    with caplog.at_level(logging.ERROR):
        assert not any(allowed("north", 0xAB) for _ in range(10))
    assert [r.getMessage()[:17] for r in caplog.records] == ["nobody is let in:"]


def test_a_register_that_comes_back_lets_sites_in_again(path: Path) -> None:
    allowed = check(path)
    content = path.read_bytes()
    path.unlink()
    assert not allowed("north", 0xAB)

    path.write_bytes(content)

    assert allowed("north", 0xAB)


def test_a_write_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(DataError, match=r"register\.json: cannot be written: No space left"):
        Register().write(path)
    assert path.read_bytes() == before


def test_a_write_is_on_the_disk_with_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(Path(f"/dev/fd/{fd}").resolve()))

    Register().write(path)

    assert flushed[-1] == path.parent.resolve()
    assert len(flushed) == 2


def test_a_file_is_for_its_owner_alone_also_where_one_stood_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o666)

    write_file(path, b"new")

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_folder_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(DataError, match="run the command as the user"), locked(tmp_path):
        pass


def test_a_folder_that_is_missing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="discreet certs init"), locked(tmp_path / "none"):
        pass
