"""The rounds of a run: ask, aggregate, evaluate, put on disk, tell.

A run between two rounds is one `Checkpoint`, and a round leads from one to the next. What
is on disk is never more than one round behind, so a run that is killed goes on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from discreet.common.plan import Plan
from discreet.common.scores import Scores
from discreet.common.update import Weights
from discreet.server.checkpoint import Checkpoint, check_resumable, save_checkpoint
from discreet.server.history import LabelScores, RoundRecord
from discreet.server.optimizer import ServerOptimizer
from discreet.server.spent import SpentEpsilon
from discreet.server.strategy import StrategySetup, StreamingFedAvg
from discreet.server.tally import RoundTally, with_round

# isort: split
# After `strategy`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import ConfigRecord
from flwr.serverapp import Grid


def _ignore(record: RoundRecord) -> None:
    pass


def _never() -> bool:
    return False


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
    resume: Checkpoint | None = None


def run_rounds(grid: Grid, setup: RunSetup) -> Checkpoint:
    """Run the rounds that are left and give the state at the end.

    It ends after the plan's last round, when `should_stop` says so, or when every site has
    refused for good. The state is on disk before `on_round` hears of the round.

    Raises:
        ConfigError: If `resume` was started with another plan.
    """
    state = _starting_state(setup)
    rounds = _Rounds(grid, setup, _strategy(setup, state), SpentEpsilon(setup.plan))
    while state.round < setup.plan.training.rounds and not setup.should_stop():
        if rounds.strategy.has_nobody(grid):
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
        tally = self._exchange(number)
        sites = with_round(state.sites, tally, round_number=number)
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

    def _exchange(self, number: int) -> RoundTally:
        """Send the weights, take the replies one by one, step."""
        strategy = self.strategy
        messages = strategy.configure_train(
            number, strategy.current_arrays(), ConfigRecord(), self.grid
        )
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
