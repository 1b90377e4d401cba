"""The round under way on disk: who was asked, whatever becomes of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from discreet.common.errors import DataError, RefusalCode
from discreet.server.history import FailureCause, SiteRecord
from discreet.server.pending import (
    PendingRound,
    add_attempt,
    load_pending,
    save_pending,
    with_pending,
)
from discreet.server.tally import RoundTally


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    pending = PendingRound(3, asked=["north", "south"], paid=["south"])

    save_pending(tmp_path, pending)

    assert load_pending(tmp_path, 3) == pending


def test_another_round_begins_with_nobody(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    save_pending(tmp_path, PendingRound(3, asked=["north"]))

    assert load_pending(tmp_path, 4) == PendingRound(4)


def test_a_damaged_file_is_named_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "asked.json").write_bytes(b'{"round": 3, "asked"')

    with pytest.raises(DataError, match=r"asked\.json"):
        load_pending(tmp_path, 3)


def test_an_attempt_in_vain_costs_those_who_may_train_anew() -> None:
    pending = PendingRound(3)
    tally = RoundTally(
        asked=["came", "spent", "lost", "diverged"],
        taken=["came"],
        refused={"spent": RefusalCode.BUDGET, "diverged": RefusalCode.DIVERGED},
        failed={"lost": FailureCause.NO_REPLY},
    )

    add_attempt(pending, tally)

    assert pending.paid == ["lost", "diverged"]


def test_who_was_asked_only_before_pays_once_and_who_was_lost_pays_again() -> None:
    pending = PendingRound(3, asked=["gone", "lost", "north"], paid=["lost"])
    tally = RoundTally(asked=["lost", "north"], taken=["lost", "north"])
    after = {name: SiteRecord(name, 1, charged=(2, 3)) for name in ("lost", "north")}

    sites = with_pending(after, pending, tally)

    assert sites["gone"].charged == (3,)
    assert sites["lost"].charged == (2, 3, 3)
    assert sites["north"].charged == (2, 3)
