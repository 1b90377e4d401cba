"""Federated averaging that takes replies one by one, as a Flower strategy.

The server holds one sum, whatever the number of sites. A reply that is not exactly what the
plan says is left out and counted, never repaired: a wrong shape, a number that is not finite
or a norm over the bound does not reach the sum. The site is named, its text and its numbers
are not.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from discreet.common.errors import NonFiniteUpdateError, RefusalCode
from discreet.common.plan import Plan
from discreet.common.update import ClippedUpdate, Update, Weights
from discreet.common.wire import (
    declared_size,
    decode_tensors,
    encode_tensors,
    num_bytes,
    read_reply,
    train_content,
)
from discreet.privacy.clip import UnclippedUpdateError, check_clipped
from discreet.server.aggregate import StreamingMean
from discreet.server.history import FailureCause
from discreet.server.optimizer import ServerOptimizer
from discreet.server.tally import STOPS, RoundTally

# isort: split
# After `wire`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

_NODE_UNAVAILABLE = 5
"""Flower's `ErrorCode` for a client that is gone."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StrategySetup:
    """What a strategy is made of.

    Attributes:
        plan: The plan.
        run: Identity of the run, sent with every task.
        site_name: Node id -> the name of its site.
    """

    plan: Plan
    run: str
    site_name: Callable[[int], str]


class StreamingFedAvg(Strategy):
    """Averages clipped updates as they come in and takes one server step a round.

    The divisor is public and fixed: `federation.cohort_size`, or the number of connected
    sites. A site that drops out therefore moves the mean by no more than its own bounded
    share. With `federation.weights: declared` the mean is weighted by the sizes that the
    sites declare, and the divisor is their sum. Those sizes are private numbers, outside the
    guarantee, that every site's policy has agreed to send; they are taken at their word, so a
    site that claims a large size moves the model the more.

    A site that refused for good (its budget is spent, its policy or the plan forbids) is not
    asked again by this object; the divisor does not change for it.

    With `federation.oversample` more sites are asked than `cohort_size`, and the first to answer
    are used: no more than the divisor counts. With fewer updates than `federation.min_sites` the
    weights stay as they are.

    Attributes:
        weights: The weights as they are now.
        tally: What came back in the round that was aggregated last.
    """

    def __init__(self, setup: StrategySetup, weights: Weights, optimizer: ServerOptimizer) -> None:
        self.weights = weights
        self.tally = RoundTally()
        self.optimizer = optimizer
        self._setup = setup
        self._arrays: ArrayRecord | None = None
        self._names: dict[int, str] = {}
        self._stopped: set[int] = set()
        self._seen: set[int] = set()
        self._divisor = 1

    def current_arrays(self) -> ArrayRecord:
        """The weights as they go to the sites; encoded once a round."""
        if self._arrays is None:
            self._arrays = encode_tensors(self.weights)
        return self._arrays

    def has_nobody(self, grid: Grid) -> bool:
        """Whether there are sites, and all of them have refused for good.

        A site that was here and is not now may come back: it counts as there.
        """
        nodes = set(grid.get_node_ids()) | self._seen
        return bool(nodes) and nodes <= self._stopped

    def num_willing(self, grid: Grid) -> int:
        """Sites that are there and have not refused for good."""
        return len(set(grid.get_node_ids()) - self._stopped)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """One message to each site of the cohort, made when it is asked for.

        The cohort is drawn by a cryptographic generator. It is a public choice of the
        server: no guarantee here counts on its being secret.
        """
        if arrays is not self._arrays:
            self.weights, self._arrays = Weights(decode_tensors(arrays)), arrays
        # By name: node ids may follow the order of arrival, and the order of the sum must not.
        by_name = sorted(grid.get_node_ids(), key=self._place)
        cohort = self._draw_cohort(by_name)
        self._seen.update(cohort)
        self._names = {node: self._setup.site_name(node) for node in cohort}
        self.tally = RoundTally(asked=list(self._names.values()))
        content = train_content(
            arrays,
            run=self._setup.run,
            round_number=server_round,
            plan_json=self._setup.plan.shared_json(),
        )
        return self._messages(cohort, content, str(server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies one by one, then one step of the server's optimizer.

        Each reply is dropped before the next one is asked for. Without any update the
        weights stay as they are, and so does the optimizer's momentum.

        Returns:
            The new weights, or None if they did not change; and the number of sites.
        """
        is_declared = self._setup.plan.federation.weights == "declared"
        mean = StreamingMean(None if is_declared else self._divisor)
        waiting = dict(self._names)
        for reply in replies:
            self._take(reply, mean, waiting, str(server_round))
            # Else this reply would live on while the grid makes the next one.
            del reply
            if self._is_full(mean):
                break
        self.tally.add_missing(FailureCause.SURPLUS if self._is_full(mean) else None)
        update = mean.result()
        if update is None or mean.num_added < self._setup.plan.federation.min_sites:
            return None, MetricRecord({"sites": mean.num_added})
        self.weights = self.optimizer.step(self.weights, update)
        self._arrays = None
        return self.current_arrays(), MetricRecord({"sites": mean.num_added})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: a score of a site's own text would leave it without noise."""
        return ()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing, as nothing is asked."""
        return None

    def summary(self) -> None:
        """Nothing: the program has its own progress and its own report."""

    def _place(self, node: int) -> tuple[int, str, int]:
        # Shorter names first, so that numbers at the end of names count as numbers.
        name = self._setup.site_name(node)
        return len(name), name, node

    def _draw_cohort(self, nodes: list[int]) -> list[int]:
        federation = self._setup.plan.federation
        size = federation.cohort_size
        self._divisor = size or max(1, len(nodes))
        willing = [node for node in nodes if node not in self._stopped]
        num_asked = math.ceil(size * federation.oversample) if size else len(willing)
        if num_asked >= len(willing):
            return willing
        drawn = set(secrets.SystemRandom().sample(willing, num_asked))
        # In the order of before, so that the order of the sum does not depend on the draw.
        return [node for node in willing if node in drawn]

    def _is_full(self, mean: StreamingMean) -> bool:
        size = self._setup.plan.federation.cohort_size
        return size is not None and mean.num_added >= size

    def _messages(self, cohort: list[int], content: RecordDict, group: str) -> Iterator[Message]:
        size = num_bytes(content)
        for node in cohort:
            self.tally.bytes_down += size
            # The tensors are shared by all messages; the dictionary around them is not.
            own = RecordDict(dict(content.items()))
            yield Message(own, node, MessageType.TRAIN, group_id=group)

    def _take(
        self, reply: Message, mean: StreamingMean, waiting: dict[int, str], group: str
    ) -> None:
        """Add one reply to the mean, or count why not."""
        node = reply.metadata.src_node_id
        if node not in waiting:
            # A second answer does not undo the first, whatever the first was.
            if node not in self._names:
                self.tally.failed[self._setup.site_name(node)] = FailureCause.NOT_ASKED
            return
        name = waiting.pop(node)
        if reply.metadata.group_id != group:
            self.tally.failed[name] = FailureCause.STALE
        elif reply.has_error():
            is_lost = reply.error.code == _NODE_UNAVAILABLE
            self.tally.failed[name] = FailureCause.LOST if is_lost else FailureCause.ERROR
        else:
            self.tally.bytes_up += num_bytes(reply.content)
            outcome = self._read(reply.content)
            if isinstance(outcome, RefusalCode):
                self.tally.refused[name] = outcome
                if outcome in STOPS:
                    self._stopped.add(node)
            elif isinstance(outcome, FailureCause):
                self.tally.failed[name] = outcome
            else:
                mean.add(*outcome)
                self.tally.taken.append(name)

    def _read(
        self, content: RecordDict
    ) -> tuple[ClippedUpdate, float] | RefusalCode | FailureCause:
        """The checked update and its weight, or why there is none."""
        federation = self._setup.plan.federation
        try:
            update = read_reply(content)
            if isinstance(update, RefusalCode):
                return update
            weight = float(declared_size(content)) if federation.weights == "declared" else 1.0
        except Exception:
            # These bytes are a stranger's: whatever a decoder makes of them (NumPy parses its
            # headers as Python source, and gives up on nested ones), they must not end the run.
            return FailureCause.UNREADABLE
        if not self._fits(update):
            return FailureCause.MISMATCH
        try:
            return check_clipped(update, federation.update_clipping_norm), weight
        except NonFiniteUpdateError:
            return FailureCause.NON_FINITE
        except UnclippedUpdateError:
            return FailureCause.OVER_BOUND

    def _fits(self, update: Update) -> bool:
        """Whether names, shapes and dtype are those of the model and the plan."""
        dtype = _DTYPES[self._setup.plan.federation.update_dtype]
        return update.keys() == self.weights.keys() and all(
            tensor.shape == self.weights[name].shape and tensor.dtype == dtype
            for name, tensor in update.items()
        )
