"""What was changed, cut off, swapped or never was a ledger is refused, by the entry's number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from discreet.common.errors import LedgerError
from discreet.privacy import ledger_file
from discreet.privacy.chain import NO_HEAD, EntryKind, LedgerEntry, hash_of, row_of
from discreet.privacy.events import DpSgdEvent
from discreet.privacy.ledger import Ceiling, Ledger

EVENT = DpSgdEvent(0.064, 1.0, 5)
OPEN = Ceiling(epsilon=1e6, delta=1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, data_set="notes") as opened:
        yield opened


def fill(ledger: Ledger, num_rounds: int = 4, run: str = "run-a") -> None:
    for round_number in range(1, num_rounds + 1):
        ledger.debit(EVENT, run=run, round_number=round_number, ceiling=OPEN)


def tamper(path: Path, *statements: str) -> None:
    """Change the file as somebody would who knows SQLite: without our triggers."""
    connection = sqlite3.connect(path)
    for name in ("no_update", "no_delete", "no_replace"):
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET num_steps = 1 WHERE seq = 2",
        "DELETE FROM entry WHERE seq = 2",
        "DELETE FROM entry",
        "INSERT OR REPLACE INTO entry SELECT * FROM entry WHERE seq = 2",
        "INSERT INTO entry SELECT 9, previous, hash, kind, run, round, sample_rate, "
        "noise_multiplier, num_steps, made_at FROM entry WHERE seq = 2",
    ],
)
def test_the_file_itself_refuses_to_change_an_entry(
    ledger: Ledger, path: Path, statement: str
) -> None:
    fill(ledger)
    connection = sqlite3.connect(path)

    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        connection.execute(statement)

    connection.close()
    ledger.verify()


TAMPERINGS = {
    "less noise told": ("UPDATE entry SET noise_multiplier = 9.0 WHERE seq = 2", 2),
    "another rate": ("UPDATE entry SET sample_rate = 0.001 WHERE seq = 3", 3),
    "fewer steps": ("UPDATE entry SET num_steps = 1 WHERE seq = 1", 1),
    "another time": ("UPDATE entry SET made_at = '2000-01-01T00:00:00+00:00' WHERE seq = 4", 4),
    "a round taken out": ("DELETE FROM entry WHERE seq = 2", 2),
    "the first taken out": ("DELETE FROM entry WHERE seq = 0", 0),
    "everything taken out": ("DELETE FROM entry", 0),
    "an entry made free": ("UPDATE entry SET kind = 'data-set' WHERE seq = 3", 3),
    "another data set": ("UPDATE entry SET run = 'other' WHERE seq = 0", 0),
    "another link": ("UPDATE entry SET previous = hash WHERE seq = 2", 2),
}


@pytest.mark.parametrize(("statement", "broken"), TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_a_changed_file_is_refused_by_the_name_of_its_first_broken_entry(
    path: Path, statement: str, broken: int
) -> None:
    with Ledger.open(path, data_set="notes") as ledger:
        fill(ledger)
    tamper(path, statement)

    with pytest.raises(LedgerError, match=f"ledger entry {broken} is broken|has no entries"):
        Ledger.open(path, data_set="notes")


@pytest.mark.parametrize("statement", [s for s, _ in TAMPERINGS.values()], ids=TAMPERINGS.keys())
def test_verify_finds_a_change_made_while_the_ledger_is_open(path: Path, statement: str) -> None:
    with Ledger.open(path, data_set="notes") as ledger:
        fill(ledger)
        tamper(path, statement)

        with pytest.raises(LedgerError):
            ledger.verify()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entry WHERE seq = 4",
        "DELETE FROM entry",
        "UPDATE entry SET hash = previous WHERE seq = 4",
    ],
)
def test_a_head_that_is_gone_stops_the_next_debit(path: Path, statement: str) -> None:
    with Ledger.open(path, data_set="notes") as ledger:
        fill(ledger)
        tamper(path, statement)

        with pytest.raises(LedgerError, match="has lost entries"):
            ledger.debit(EVENT, run="a", round_number=5, ceiling=OPEN)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("dp-sgd", (None, None, None)),
        ("dp-sgd", (2.0, 1.0, 1)),
        ("dp-sgd", (0.1, 0.0, 1)),
        ("gift", (None, None, None)),
    ],
)
def test_an_entry_that_we_never_write_is_refused_though_its_hash_is_right(
    path: Path, kind: str, numbers: tuple[float | None, float | None, int | None]
) -> None:
    with Ledger.open(path, data_set="notes") as ledger:
        head = ledger.head
    row = (1, head, "", kind, "a", 1, *numbers, "2026-01-01T00:00:00+00:00")
    sealed = (*row[:2], hash_of(row), *row[3:])
    connection = sqlite3.connect(path)
    connection.execute(ledger_file.INSERT, sealed)
    connection.commit()
    connection.close()

    with pytest.raises(LedgerError, match="ledger entry 1 is broken"):
        Ledger.open(path, data_set="notes")


def test_the_hash_of_an_entry_covers_everything_else() -> None:
    entry = LedgerEntry(1, "0" * 64, "", EntryKind.DP_SGD, "a", 1, EVENT, "2026-01-01")
    row = row_of(entry)

    changed = [2, "1" * 64, None, "data-set", "b", 2, 0.5, 2.0, 6, "2026-01-02"]

    for column, value in enumerate(changed):
        if column != 2:
            assert hash_of((*row[:column], value, *row[column + 1 :])) != row[2]


def test_the_hash_is_sha_256_over_a_json_array() -> None:
    entry = LedgerEntry(1, "ab", "", EntryKind.DP_SGD, "a", 1, EVENT, "2026-01-01")

    # printf '%s' '[1,"ab","dp-sgd","a",1,0.064,1.0,5,"2026-01-01"]' | sha256sum
    assert row_of(entry)[2] == "fe774a83a36ee4659448e963b65a52a7b8377fe72a040ff4d6370471c921f793"
    assert NO_HEAD == (-1, "0" * 64)


def test_the_ledger_of_another_data_set_is_refused(path: Path) -> None:
    Ledger.open(path, data_set="notes").close()

    with pytest.raises(LedgerError, match="the ledger of another data set"):
        Ledger.open(path, data_set="letters")


@pytest.mark.parametrize("content", [b"", b"not a database at all\n" * 100, b"\x00" * 4096])
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)

    with pytest.raises(LedgerError, match=r"is no ledger of this version|cannot be used"):
        Ledger.open(path, data_set="notes")

    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE entry (seq INTEGER)")
    connection.close()

    with pytest.raises(LedgerError, match="is no ledger of this version"):
        Ledger.open(path, data_set="notes")


def test_a_file_cut_off_anywhere_is_refused(path: Path) -> None:
    with Ledger.open(path, data_set="notes") as ledger:
        fill(ledger, 60)
    whole = path.read_bytes()

    for size in range(0, len(whole) - 1, 1024):
        path.write_bytes(whole[:size])
        with pytest.raises(LedgerError):
            Ledger.open(path, data_set="notes")
