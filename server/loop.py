"""The rounds of a run: ask, aggregate, evaluate, put on disk, tell.

A run between two rounds is one `Checkpoint`, and a round leads from one to the next. What
is on disk is never more than one round behind, so a run that is killed goes on from there.

A server waits for its quorum. A round that loses sites below it is asked again: a site whose
update is made sends the same one, so no text pays twice for one release.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from discreet.common.errors import UnreachableError
from discreet.common.plan import Plan
from discreet.common.scores import Scores
from discreet.common.update import Weights
from discreet.server.checkpoint import Checkpoint, check_resumable, save_checkpoint
from discreet.server.history import LabelScores, RoundRecord
from discreet.server.optimizer import ServerOptimizer
from discreet.server.pending import (
    PendingRound,
    add_attempt,
    load_pending,
    save_pending,
    with_pending,
)
from discreet.server.spent import SpentEpsilon
from discreet.server.strategy import StrategySetup, StreamingFedAvg
from discreet.server.tally import RoundTally, with_round

# isort: split
# After `strategy`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

_log = logging.getLogger(__name__)


def _ignore(record: RoundRecord) -> None:
    pass


def _never() -> bool:
    return False


def _wait_in_silence(num_sites: int) -> None:
    pass


MAX_ATTEMPTS = 3
"""Times that a round is asked for before the run ends for want of sites."""

_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a run is made of.

    Attributes:
        plan: The plan.
        run: Identity of the run; a resumed one keeps the one it has.
        run_dir: The run's folder.
        start_weights: Weights before the first round.
        site_name: Node id -> the name of its site.
        evaluate: Scores weights on the public split; none runs without measuring.
        on_round: Called with the record of each round, once it is on disk.
        should_stop: Asked between rounds; true ends the run in good order.
        timeout_seconds: Longest wait for the replies of a round; none waits for all.
        wait_seconds: Longest wait for a quorum; with 0, as in a simulation, there is no wait and
            no second attempt at a round: its sites are all here, or never.
        on_wait: Called again and again while the run waits, with the number of sites there.
        resume: Where to go on; none starts anew.
    """

    plan: Plan
    run: str
    run_dir: Path
    start_weights: Weights
    site_name: Callable[[int], str] = str
    evaluate: Callable[[Weights], Scores] | None = None
    on_round: Callable[[RoundRecord], None] = _ignore
    should_stop: Callable[[], bool] = _never
    timeout_seconds: float | None = None
    wait_seconds: float = 0.0
    on_wait: Callable[[int], None] = _wait_in_silence
    resume: Checkpoint | None = None


def run_rounds(grid: Grid, setup: RunSetup) -> Checkpoint:
    """Run the rounds that are left and give the state at the end.

    It ends after the plan's last round, when `should_stop` says so, or when every site has
    refused for good. The state is on disk before `on_round` hears of the round.

    Raises:
        ConfigError: If `resume` was started with another plan.
        UnreachableError: If the quorum was not there in time; what was done is on disk.
        KeyboardInterrupt: If `should_stop` says so while the run waits for sites.
    """
    state = _starting_state(setup)
    rounds = _Rounds(grid, setup, _strategy(setup, state), SpentEpsilon(setup.plan))
    while state.round < setup.plan.training.rounds and not setup.should_stop():
        if not rounds.wait_for_quorum():
            break
        state = rounds.after(state)
        save_checkpoint(setup.run_dir, state)
        setup.on_round(state.records[-1])
    return state


@dataclass(frozen=True, slots=True)
class _Rounds:
    """What stays the same from round to round."""

    grid: Grid
    setup: RunSetup
    strategy: StreamingFedAvg
    epsilon: SpentEpsilon

    def after(self, state: Checkpoint) -> Checkpoint:
        """The state after one more round."""
        started = time.perf_counter()
        number = state.round + 1
        pending = load_pending(self.setup.run_dir, number)
        tally = self._exchange_until_quorum(pending)
        sites = with_round(state.sites, tally, round_number=number)
        sites = with_pending(sites, pending, tally)
        evaluate = self.setup.evaluate
        record = RoundRecord(
            round=number,
            sites_asked=len(tally.asked),
            sites=len(tally.taken),
            epsilon_max=self.epsilon.largest(sites.values()),
            bytes_up=tally.bytes_up,
            bytes_down=tally.bytes_down,
            refused={name: str(code) for name, code in tally.refused.items()},
            failed={name: str(cause) for name, cause in tally.failed.items()},
            seconds=0.0,
        )
        if evaluate is not None:
            record = _with_scores(record, evaluate(self.strategy.weights), self.setup.plan)
        return replace(
            state,
            round=number,
            weights=self.strategy.weights,
            optimizer_state=self.strategy.optimizer.state(),
            records=(*state.records, replace(record, seconds=time.perf_counter() - started)),
            sites=sites,
        )

    def wait_for_quorum(self) -> bool:
        """Wait until so many sites are there as the plan wants; false if all have refused."""
        setup, quorum = self.setup, self.setup.plan.federation.min_sites
        deadline = time.monotonic() + setup.wait_seconds
        while not self.strategy.has_nobody(self.grid):
            num_sites = self.strategy.num_willing(self.grid)
            if num_sites >= quorum or setup.wait_seconds == 0:
                return True
            if setup.should_stop():
                raise KeyboardInterrupt
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"federation.min_sites is {quorum}, but after federation.wait_seconds "
                    f"({setup.wait_seconds:g} s) {num_sites} were there: start more clients"
                )
            setup.on_wait(num_sites)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return False

    def _exchange_until_quorum(self, pending: PendingRound) -> RoundTally:
        """Ask for a round, and again as long as sites were lost and too few updates came."""
        quorum = self.setup.plan.federation.min_sites
        for _ in range(MAX_ATTEMPTS):
            tally = self._exchange(pending)
            if len(tally.taken) >= quorum or not (tally.lost and self.setup.wait_seconds):
                return tally
            _log.warning(
                "round %d: %d updates came, federation.min_sites is %d, lost %s: asking again",
                pending.round,
                len(tally.taken),
                quorum,
                ", ".join(tally.lost),
            )
            add_attempt(pending, tally)
            save_pending(self.setup.run_dir, pending)
            self.wait_for_quorum()
        raise UnreachableError(
            f"round {pending.round}: federation.min_sites is {quorum}, but fewer updates came in "
            f"{MAX_ATTEMPTS} attempts: see which clients fail, then go on with --resume"
        )

    def _exchange(self, pending: PendingRound) -> RoundTally:
        """Send the weights, take the replies one by one, step."""
        strategy, number = self.strategy, pending.round
        messages = strategy.configure_train(
            number, strategy.current_arrays(), ConfigRecord(), self.grid
        )
        if self.setup.wait_seconds:
            asked = {*pending.asked, *strategy.tally.asked}
            pending.asked = sorted(asked)
            save_pending(self.setup.run_dir, pending)
        replies = self.grid.send_and_receive(messages, timeout=self.setup.timeout_seconds)
        strategy.aggregate_train(number, replies)
        return strategy.tally


def _with_scores(record: RoundRecord, scores: Scores, plan: Plan) -> RoundRecord:
    classes = tuple(
        LabelScores(plan.task.labels[c.label], c.precision, c.recall, c.f1, c.support)
        for c in scores.per_class
    )
    return replace(
        record,
        # JSON has no NaN: weights that diverged have no loss.
        loss=scores.loss if math.isfinite(scores.loss) else None,
        accuracy=scores.accuracy,
        precision=scores.precision,
        recall=scores.recall,
        f1=scores.f1,
        classes=classes,
    )


def _strategy(setup: RunSetup, state: Checkpoint) -> StreamingFedAvg:
    optimizer = ServerOptimizer(setup.plan.federation)
    optimizer.load_state(state.optimizer_state)
    return StreamingFedAvg(
        StrategySetup(setup.plan, state.run, setup.site_name), state.weights, optimizer
    )


def _starting_state(setup: RunSetup) -> Checkpoint:
    fingerprint = setup.plan.fingerprint
    if setup.resume is not None:
        check_resumable(setup.resume, fingerprint, setup.run_dir)
        return setup.resume
    state = Checkpoint(
        run=setup.run,
        plan_fingerprint=fingerprint,
        round=0,
        weights=setup.start_weights,
        optimizer_state={},
        records=(),
        sites={},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # So that a run that is killed in its first round keeps its identity.
    save_checkpoint(setup.run_dir, state)
    return state
