"""One site at work: its ledger, its prepared text, and what it answers to a server's task.

All that must survive is on disk in the site's state folder: the ledger, the scrubbed text,
and the last update. If the server asks for the same round of the same weights again (it
crashed, or the connection broke), the same update is sent: one release, one debit.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from discreet.client.outbox import KeptUpdate, Outbox
from discreet.client.policy import check_policy
from discreet.client.prepare import PreparedTexts
from discreet.client.training import Round, debit_round, new_model, randomness_for, train_round
from discreet.common.blame import place_of
from discreet.common.config import plan_from_json
from discreet.common.errors import (
    DataError,
    DiscreetError,
    NonFiniteUpdateError,
    RefusalCode,
    RefusedError,
)
from discreet.common.layers import TextModel
from discreet.common.plan import Plan, TokensConfig
from discreet.common.site import Site
from discreet.common.tokens import Examples, Tokenizer
from discreet.common.update import Update
from discreet.common.wire import TrainTask, decode_tensors, encode_update
from discreet.privacy.clip import check_clipped
from discreet.privacy.ledger import Ceiling, Ledger

LEDGER_FILE = "ledger.sqlite"
"""The ledger's name in a site's state folder."""

_log = logging.getLogger(__name__)
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a site sends for a round.

    Attributes:
        kept: The update as it crosses the wire, and its hash.
        num_examples: The site's size where plan and policy ask for it, else none.
    """

    kept: KeptUpdate
    num_examples: int | None


class SiteRuntime:
    """A site that answers tasks.

    Args:
        site: The site's settings.
        texts: Gives its prepared texts; called when the first task of a plan needs them.
    """

    def __init__(self, site: Site, texts: Callable[[], PreparedTexts]) -> None:
        self.site = site
        self.ceiling = Ceiling(epsilon=site.policy.epsilon, delta=site.policy.delta)
        self._texts = texts
        self._examples: tuple[str, Examples] | None = None
        site.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ledger: Ledger | None = None
        self._outbox = Outbox(site.state_dir / "outbox.bin")

    @property
    def ledger(self) -> Ledger:
        """The site's ledger, opened when it is first asked for."""
        if self._ledger is None:
            path = self.site.state_dir / LEDGER_FILE
            self._ledger = Ledger.open(path, data_set=self.site.name)
        return self._ledger

    def close(self) -> None:
        """Close the ledger's files; what needs it next opens it again."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def answer(self, task: TrainTask) -> Answer | RefusalCode:
        """Answer one task, or say by a code why not. Never raises, never explains.

        The reason of a refusal is written to this site's log, in public words only.
        """
        try:
            return self._train(task)
        except RefusedError as error:
            code, reason = error.code, str(error)
        except NonFiniteUpdateError as error:
            code, reason = RefusalCode.DIVERGED, str(error)
        except DataError as error:
            code, reason = RefusalCode.DATA, str(error)
        except DiscreetError as error:
            code, reason = RefusalCode.PLAN, str(error)
        except Exception as error:
            code, reason = RefusalCode.INTERNAL, place_of(error)
        _log.warning("site %s refuses (%s): %s", self.site.name, code, reason)
        return code

    def _train(self, task: TrainTask) -> Answer:
        plan = _parse_plan(task.plan_json)
        check_policy(plan, self.site.policy)
        examples = self._examples_for(plan)
        size = len(examples) if plan.federation.weights == "declared" else None
        asked = Round(task.run, task.round_number)
        key = f"{plan.fingerprint}/{asked.run}/{asked.number}/{task.weights_sha256}"
        kept = self._outbox.load(key=key)
        if kept is not None:
            # A file may have been tampered with, or the plan's bound lowered.
            check_clipped(Update(decode_tensors(kept.arrays)), plan.federation.update_clipping_norm)
        else:
            debit_round(self.ledger, plan, asked, self.ceiling)
            randomness = randomness_for(plan, self.site.name, asked)
            model = _model_of_thread(plan)
            update = train_round(model, task.weights, examples, plan, randomness)
            arrays = encode_update(update, dtype=plan.federation.update_dtype)
            kept = self._outbox.save(arrays, key=key)
        return Answer(kept, size)

    def _examples_for(self, plan: Plan) -> Examples:
        if self._examples is None or self._examples[0] != plan.fingerprint:
            self._examples = (plan.fingerprint, encode_texts(self._texts(), plan))
        return self._examples[1]


def encode_texts(prepared: PreparedTexts, plan: Plan) -> Examples:
    """Tokens and labels of a site's texts, as the plan says.

    Raises:
        DataError: If a text has no label, or one that the plan does not have.
    """
    number = {label: i for i, label in enumerate(plan.task.labels)}
    labels = [number.get(label or "", -1) for label in prepared.labels]
    if -1 in labels:
        # How many there are is the site's own affair, and this ends in its log.
        raise DataError(
            f"task.labels: must hold the label of every text of the site, got {len(number)} labels "
            "and a text with another or none: complete task.labels, or mend the site's labels"
        )
    return load_tokenizer(plan).encode(prepared.texts, labels)


def load_tokenizer(plan: Plan) -> Tokenizer:
    """The plan's tokenizer, read once a process."""
    return _tokenizer(plan.tokens.model_dump_json())


@functools.lru_cache(maxsize=4)
def _tokenizer(config: str) -> Tokenizer:
    return Tokenizer.load(TokensConfig.model_validate_json(config))


@functools.lru_cache(maxsize=16)
def _parse_plan(content: bytes) -> Plan:
    return plan_from_json(content)


def _model_of_thread(plan: Plan) -> TextModel:
    # Sites of one process take turns with one model a thread: a task replaces its weights.
    kept: tuple[str, TextModel] | None = getattr(_thread, "model", None)
    if kept is None or kept[0] != plan.fingerprint:
        kept = (plan.fingerprint, new_model(plan, load_tokenizer(plan).vocabulary_size))
        _thread.model = kept
    return kept[1]
