"""Invented texts, and a plan and a site for them: for the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from discreet.client.prepare import PreparedTexts
from discreet.client.runtime import SiteRuntime, load_tokenizer
from discreet.client.source import TextSource
from discreet.client.training import new_model
from discreet.common.corpus import RawText
from discreet.common.models import weights_of
from discreet.common.plan import Plan
from discreet.common.site import Site
from discreet.common.update import Weights
from discreet.common.wire import TrainTask, encode_tensors, read_task, train_content

LABELS = ("ham", "spam")


def texts(num: int = 12) -> list[RawText]:
    """Half of them one label, half the other."""
    words = ("soup at noon by the lake", "win a free prize now")
    return [RawText(f"{words[i % 2]} number {i}", LABELS[i % 2], None, i) for i in range(num)]


def source_of(rows: list[RawText], fingerprint: str = "f" * 64) -> TextSource:
    """A source that gives these rows."""
    return TextSource(fingerprint, lambda: iter(rows))


def unreadable_source(fingerprint: str = "f" * 64) -> TextSource:
    """A source whose text must not be asked for."""

    def read() -> Iterator[RawText]:
        raise AssertionError("the raw text was read")

    return TextSource(fingerprint, read)


def prepared(rows: list[RawText]) -> PreparedTexts:
    """These rows, as if they had been made ready."""
    return PreparedTexts([r.text for r in rows], [r.label for r in rows], {}, {})


def plan_of(**sections: Mapping[str, object] | str) -> Plan:
    """A tiny private plan; `training={...}` and the like add to or replace its settings."""
    content: dict[str, object] = {
        "name": "test",
        "task": {"labels": list(LABELS)},
        "model": {"kind": "linear", "buckets": 32},
        "tokens": {"max_tokens": 8},
        "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-5},
        "training": {
            "rounds": 4,
            "sample_rate": 1.0,
            "expected_batch_size": 12,
            "learning_rate": 1.0,
        },
    }
    for name, section in sections.items():
        known = content.get(name)
        is_added_to = isinstance(section, Mapping) and isinstance(known, dict)
        content[name] = {**known, **section} if is_added_to else section
    return Plan.model_validate(content)


def site_of(folder: Path, *, scrub: Mapping[str, object] | None = None, **policy: object) -> Site:
    """A site with its state in `folder`; further settings are its policy's."""
    return Site.model_validate(
        {
            "name": "site-0000",
            "data": {"path": "nowhere.jsonl"},
            "scrub": scrub or {"enabled": False},
            "policy": {"epsilon": 8.0, "delta": 1e-5, **policy},
            "state_dir": folder / "site-0000",
        }
    )


def runtime_of(site: Site, rows: list[RawText] | None = None) -> SiteRuntime:
    """A site at work on these rows."""
    ready = prepared(texts() if rows is None else rows)
    return SiteRuntime(site, lambda: ready)


def start_weights(plan: Plan) -> Weights:
    """The weights that the plan's seed gives."""
    return weights_of(new_model(plan, load_tokenizer(plan).vocabulary_size))


def task_of(
    plan: Plan, *, round_number: int = 1, run: str = "run", weights: Weights | None = None
) -> TrainTask:
    """What a server asks, read as a client reads it."""
    arrays = encode_tensors(start_weights(plan) if weights is None else weights)
    content = train_content(
        arrays, run=run, round_number=round_number, plan_json=plan.shared_json()
    )
    return read_task(content)


def moved(weights: Weights) -> Weights:
    """Other weights of the same shapes."""
    return Weights({name: tensor + torch.ones_like(tensor) for name, tensor in weights.items()})
