"""The ledger debits first, refuses what would pass the ceiling, and forgets nothing."""

from __future__ import annotations

import math
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discreet.common.errors import BudgetExceededError, InputError, LedgerError, RefusalCode
from discreet.privacy import ledger as module
from discreet.privacy.accountant import epsilon_of
from discreet.privacy.chain import EntryKind
from discreet.privacy.events import DpSgdEvent
from discreet.privacy.ledger import Ceiling, Ledger

EVENT = DpSgdEvent(0.064, 1.0, 5)
CEILING = Ceiling(epsilon=8.0, delta=1e-5)
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


def test_a_debit_returns_the_epsilon_spent_so_far(ledger: Ledger) -> None:
    spent = [
        ledger.debit(EVENT, run="a", round_number=number, ceiling=CEILING) for number in (1, 2)
    ]

    assert spent == [epsilon_of([EVENT], 1e-5), epsilon_of([EVENT, EVENT], 1e-5)]
    assert ledger.epsilon(1e-5) == spent[1]
    assert ledger.epsilon(1e-7) == epsilon_of([EVENT, EVENT], 1e-7)


def test_a_new_ledger_has_spent_nothing(ledger: Ledger) -> None:
    assert ledger.epsilon(1e-5) == 0.0
    assert ledger.entries() == []
    assert ledger.num_rounds("a") == 0
    ledger.verify()


def test_spending_carries_over_to_the_next_opening(path: Path) -> None:
    with Ledger.open(path, data_set="notes") as first:
        fill(first)
        spent, head = first.epsilon(1e-5), first.head

    with Ledger.open(path, data_set="notes") as second:
        assert (second.epsilon(1e-5), second.head) == (spent, head)
        second.verify()


def test_a_debit_past_the_ceiling_is_refused_and_nothing_is_written(ledger: Ledger) -> None:
    ceiling = Ceiling(epsilon=epsilon_of([EVENT, EVENT], 1e-5), delta=1e-5)
    for number in (1, 2):
        ledger.debit(EVENT, run="a", round_number=number, ceiling=ceiling)
    before = ledger.head

    with pytest.raises(BudgetExceededError, match="the ceiling of this data set is") as caught:
        ledger.debit(EVENT, run="a", round_number=3, ceiling=ceiling)

    assert caught.value.code is RefusalCode.BUDGET
    assert ledger.head == before
    assert not ledger.has_entry("a", 3)
    # A smaller step may still fit.
    assert ledger.debit(
        DpSgdEvent(1e-6, 50.0, 1), run="a", round_number=3, ceiling=Ceiling(8.0, 1e-5)
    )


@pytest.mark.parametrize("epsilon", [math.nan, math.inf])
def test_an_epsilon_that_is_no_number_is_over_every_ceiling(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, epsilon: float
) -> None:
    monkeypatch.setattr(module, "epsilon_of", lambda events, delta: epsilon)

    with pytest.raises(BudgetExceededError):
        ledger.debit(EVENT, run="a", round_number=1, ceiling=CEILING)

    assert not ledger.has_entry("a", 1)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_ceiling_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="ceiling epsilon must be"):
        Ceiling(epsilon=bad, delta=1e-5)
    with pytest.raises(InputError, match="ceiling delta must be"):
        Ceiling(epsilon=1.0, delta=bad)


def test_a_round_without_privacy_makes_epsilon_infinite_for_ever(path: Path) -> None:
    with Ledger.open(path, data_set="notes") as first:
        fill(first, 1)
        first.debit_without_privacy("open", 1)
        assert first.epsilon(1e-5) == math.inf

    with Ledger.open(path, data_set="notes") as second:
        assert second.epsilon(1e-5) == math.inf
        with pytest.raises(BudgetExceededError, match="epsilon to inf"):
            second.debit(EVENT, run="a", round_number=2, ceiling=OPEN)
        second.verify()
        assert second.entries()[1].kind is EntryKind.WITHOUT_PRIVACY


def test_entries_say_what_was_debited_in_order(ledger: Ledger) -> None:
    fill(ledger, 2)
    other = DpSgdEvent(1, 3, 2)  # whole numbers come back as the same floats
    ledger.debit(other, run="run-b", round_number=9, ceiling=OPEN)

    entries = ledger.entries()

    assert [(e.seq, e.run, e.round_number, e.event) for e in entries] == [
        (1, "run-a", 1, EVENT),
        (2, "run-a", 2, EVENT),
        (3, "run-b", 9, other),
    ]
    assert [e.previous for e in entries[1:]] == [e.hash for e in entries[:-1]]
    assert ledger.head == entries[-1].hash
    assert all(e.made_at.endswith("+00:00") for e in entries)


@given(
    sample_rate=st.floats(0, 1, exclude_min=True),
    noise=st.floats(1e-300, 1e300),
    num_steps=st.integers(1, 10**12),
    run=st.text(st.characters(codec="utf-8"), max_size=20),
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_event_is_read_back_exactly(
    ledger: Ledger, sample_rate: float, noise: float, num_steps: int, run: str
) -> None:
    event = DpSgdEvent(sample_rate, noise, num_steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "epsilon_of", lambda events, delta: 0.0)
        ledger.debit(event, run=run, round_number=1, ceiling=CEILING)

    assert ledger.entries()[-1].event == event
    assert ledger.has_entry(run, 1)
    ledger.verify()


def test_rounds_are_counted_once_and_by_run(ledger: Ledger) -> None:
    fill(ledger, 3)
    ledger.debit(EVENT, run="run-a", round_number=3, ceiling=OPEN)
    ledger.debit_without_privacy("run-b", 7)

    assert [ledger.num_rounds(run) for run in ("run-a", "run-b", "run-c", "notes")] == [3, 1, 0, 0]
    assert ledger.has_entry("run-a", 3)
    assert ledger.has_entry("run-b", 7)
    assert not ledger.has_entry("run-a", 4)
    assert not ledger.has_entry("notes", 0)


def test_the_file_and_its_side_files_belong_to_the_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with Ledger.open(path, data_set="notes") as ledger:
            fill(ledger, 1)
            files = list(path.parent.iterdir())
            modes = {stat.S_IMODE(file.stat().st_mode) for file in files}
    finally:
        os.umask(before)

    assert {file.name for file in files} == {
        "ledger.sqlite",
        "ledger.sqlite-wal",
        "ledger.sqlite-shm",
    }
    assert modes == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_each_commit_is_flushed_to_a_write_ahead_log(ledger: Ledger) -> None:
    settings = [
        ledger._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    ]

    assert settings == ["wal", 2]  # 2 is FULL


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_cannot_be_written_is_an_error_with_its_reason(path: Path) -> None:
    Ledger.open(path, data_set="notes").close()
    path.chmod(0o400)

    with (
        pytest.raises(LedgerError, match="cannot be used as a ledger"),
        Ledger.open(path, data_set="notes") as ledger,
    ):
        fill(ledger, 1)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(LedgerError, match="cannot be used as a ledger"):
        Ledger.open(tmp_path / "file" / "ledger.sqlite", data_set="notes")


def test_a_failed_write_is_not_counted_and_the_next_one_is(path: Path, ledger: Ledger) -> None:
    fill(ledger, 1)
    other = sqlite3.connect(path, isolation_level=None)
    ledger._connection.execute("PRAGMA busy_timeout = 1")
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(LedgerError, match="locked"):
        ledger.debit(EVENT, run="a", round_number=2, ceiling=OPEN)

    other.execute("ROLLBACK")
    other.close()
    spent = ledger.debit(EVENT, run="a", round_number=2, ceiling=OPEN)
    assert spent == epsilon_of([EVENT, EVENT], 1e-5)
    ledger.verify()


def test_a_commit_that_fails_is_forgotten(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(ledger, 1)

    class Failing:
        """A connection whose disk is full at the moment of the commit."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self.real = real

        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return self.real.execute(statement, *values)

        def rollback(self) -> None:
            self.real.rollback()

    real = ledger._connection
    monkeypatch.setattr(ledger, "_connection", Failing(real))
    with pytest.raises(LedgerError, match="disk is full"):
        ledger.debit(EVENT, run="a", round_number=2, ceiling=OPEN)
    monkeypatch.setattr(ledger, "_connection", real)

    assert ledger.epsilon(1e-5) == epsilon_of([EVENT], 1e-5)
    assert not ledger.has_entry("a", 2)


def test_two_openers_of_one_file_see_each_others_debits(path: Path) -> None:
    with (
        Ledger.open(path, data_set="notes") as first,
        Ledger.open(path, data_set="notes") as second,
    ):
        for number in range(3):
            first.debit(EVENT, run="a", round_number=number, ceiling=OPEN)
            second.debit(EVENT, run="b", round_number=number, ceiling=OPEN)

        assert first.epsilon(1e-5) == second.epsilon(1e-5) == epsilon_of([EVENT] * 6, 1e-5)
        assert first.head == second.head
        assert first.entries() == second.entries()


def test_threads_that_share_a_ledger_lose_nothing(ledger: Ledger) -> None:
    threads = [
        threading.Thread(target=fill, args=(ledger, 10, f"run-{number}")) for number in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ledger.entries()) == 40
    ledger.verify()


def test_who_comes_second_in_making_a_ledger_uses_the_first_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(path, data_set="notes") as ledger:
        fill(ledger, 2)
        monkeypatch.setattr(Path, "exists", lambda self: False)

        with Ledger.open(path, data_set="notes") as second:
            assert len(second.entries()) == 2

    assert [file.name for file in path.parent.iterdir()] == ["ledger.sqlite"]


def test_closing_twice_is_fine(path: Path) -> None:
    ledger = Ledger.open(path, data_set="notes")

    ledger.close()
    ledger.close()

    with pytest.raises(LedgerError, match="closed"):
        ledger.epsilon(1e-5)
