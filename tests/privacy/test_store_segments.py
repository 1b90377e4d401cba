"""The store's files: private, whole, without raw text, by policy."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discreet.common.errors import DataError
from discreet.privacy.detect import Failure
from discreet.privacy.scrub import Outcome
from discreet.privacy.store_segments import Segments

POLICY = "ab" * 32
SEAL_KEY = bytes(range(32))
OUTCOMES = [
    (b"0" * 16, Outcome("call <PHONE_NUMBER>", None, (("PHONE_NUMBER", 1),), 8)),
    (b"1" * 16, Outcome(None)),
    (b"2" * 16, Outcome(None, Failure.TOO_LONG)),
    (b"3" * 16, Outcome("", None, (), 0)),
]

outcomes_of_any_kind = st.builds(
    Outcome,
    st.none() | st.text(max_size=50),
    st.none() | st.sampled_from(Failure),
    st.lists(st.tuples(st.sampled_from(["URL", "UUID"]), st.integers(1, 9)), max_size=3).map(tuple),
    st.integers(0, 2**40),
)


@pytest.mark.parametrize("seal_key", [None, SEAL_KEY], ids=["plain", "sealed"])
def test_what_was_written_is_read(tmp_path: Path, seal_key: bytes | None) -> None:
    segments = Segments(tmp_path / "store", POLICY, seal_key)

    segments.write(OUTCOMES[:2])
    segments.write(OUTCOMES[2:])

    assert Segments(tmp_path / "store", POLICY, seal_key).load() == dict(OUTCOMES)


@given(outcome=outcomes_of_any_kind)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_outcome_survives(tmp_path: Path, outcome: Outcome) -> None:
    segments = Segments(tmp_path / "store", POLICY, None)

    segments.write([(b"k" * 16, outcome)])

    assert segments.load() == {b"k" * 16: outcome}
    for path in (tmp_path / "store").iterdir():
        path.unlink()


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    Segments(folder, POLICY, None).write(OUTCOMES)

    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    Segments(tmp_path / "store", POLICY, None).write([])

    assert list((tmp_path / "store").iterdir()) == []


def test_another_policy_finds_nothing(tmp_path: Path) -> None:
    Segments(tmp_path, POLICY, None).write(OUTCOMES)

    assert Segments(tmp_path, "cd" * 32, None).load() == {}


def test_the_footer_repeats_no_text(tmp_path: Path) -> None:
    Segments(tmp_path, POLICY, None).write(OUTCOMES)
    (path,) = tmp_path.glob("*.parquet")

    columns = pq.read_metadata(path).row_group(0)

    assert all(columns.column(i).statistics is None for i in range(columns.num_columns))


def test_a_sealed_segment_shows_nothing(tmp_path: Path) -> None:
    Segments(tmp_path, POLICY, SEAL_KEY).write(OUTCOMES)

    (path,) = tmp_path.iterdir()

    assert path.suffix == ".sealed"
    assert b"PAR1" not in path.read_bytes()
    assert b"PHONE" not in path.read_bytes()


def test_encryption_leaves_no_plain_segment_beside_it_and_no_strangers_file_is_touched(
    tmp_path: Path,
) -> None:
    Segments(tmp_path, POLICY, None).write(OUTCOMES)
    (tmp_path / "mine.parquet").write_bytes(b"mine")

    Segments(tmp_path, POLICY, SEAL_KEY).write(OUTCOMES)

    assert [path.name for path in tmp_path.glob("*.parquet")] == ["mine.parquet"]


def test_a_sealed_segment_under_another_name_is_refused(tmp_path: Path) -> None:
    segments = Segments(tmp_path, POLICY, SEAL_KEY)
    segments.write(OUTCOMES)
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(path.name.replace("-", "-0", 1).replace("ab-", "ab-0")))
    other = next(tmp_path.iterdir())
    other.rename(tmp_path / path.name.replace(path.stem[-16:], "0" * 16))

    with pytest.raises(DataError, match="cannot be opened"):
        segments.load()


@pytest.mark.parametrize("damage", ["cut", "empty", "other columns", "unknown failure", "no key"])
def test_a_damaged_segment_is_refused_by_name_and_not_repaired(tmp_path: Path, damage: str) -> None:
    segments = Segments(tmp_path, POLICY, None)
    segments.write(OUTCOMES)
    (path,) = tmp_path.iterdir()
    table = pq.read_table(pa.BufferReader(path.read_bytes()))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other columns":
        pq.write_table(pa.table({"x": [1]}), path)
    elif damage == "no key":
        pq.write_table(table.drop_columns(["key"]), path)
    else:
        failures = pa.array(["moonlight"] * len(OUTCOMES))
        pq.write_table(table.set_column(2, "failure", failures), path)

    with pytest.raises(DataError, match="delete it") as caught:
        segments.load()

    assert path.name in str(caught.value)
    assert "PHONE" not in str(caught.value)


def test_half_written_files_are_ignored_and_cleared_away_when_old(tmp_path: Path) -> None:
    new, old = (tmp_path / f".scrubbed-{POLICY[:32]}-{n}.parquet.0.part" for n in (1, 2))
    for path in (new, old):
        path.write_bytes(b"half")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))

    segments = Segments(tmp_path, POLICY, None)

    assert segments.load() == {}
    assert new.exists()
    assert not old.exists()
