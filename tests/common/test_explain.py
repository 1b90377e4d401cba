"""What a person is told who wrote a wrong setting: every line, word by word."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.config import parse_plan
from discreet.common.errors import ConfigError
from discreet.common.explain import meanings
from discreet.common.plan import Plan, TrainingConfig
from discreet.common.site import Section

PLAN: dict[str, object] = {
    "name": "test",
    "task": {"labels": ["ham", "spam"]},
    "model": {"kind": "linear"},
    "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-5},
    "training": {
        "rounds": 2,
        "sample_rate": 0.1,
        "expected_batch_size": 10,
        "learning_rate": 0.5,
    },
    "evaluation": {"data": {"path": "embedded:sms_spam"}},
    "simulation": {"data": {"path": "texts/*.jsonl"}},
}


def changed(path: str, value: object) -> dict[str, object]:
    """`PLAN` with one setting changed, or taken out where the value is `...`."""
    content = copy.deepcopy(PLAN)
    *names, last = path.split(".")
    section = content
    for name in names:
        inner = section.setdefault(name, {})
        assert isinstance(inner, dict)
        section = inner
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return content


def errors_of(content: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_plan(content, base_dir=Path("/base"), source="RUN.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("RUN.yaml: ") for line in lines)
    return [line.removeprefix("RUN.yaml: ") for line in lines]


def test_every_error_is_told_at_once() -> None:
    content = changed("training.learning_rate", float("nan"))
    content["privacy"] = {"unit": "example", "epsilon": -1, "delta": 0}
    content["federation"] = {"agregation": "fedavg"}
    del content["task"]

    lines = errors_of(content)

    assert [line.partition(": ")[0] for line in lines] == [
        "task",
        "privacy.epsilon",
        "privacy.delta",
        "training.learning_rate",
        "federation.agregation",
    ]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            "training.learning_rate",
            float("nan"),
            "training.learning_rate: must be a finite number > 0, got nan: change it (step size of "
            "the optimizer)",
        ),
        (
            "privacy.delta",
            0,
            "privacy.delta: must be a number > 0 and < 1, got 0.0: 1e-5 is usual, far below 1 / "
            "examples",
        ),
        (
            "training.rounds",
            ...,
            "training.rounds: is required: add it (times the server sends the model out)",
        ),
        (
            "training.rounds",
            2.5,
            "training.rounds: must be a whole number, got 2.5: change it (times the server sends "
            "the model out)",
        ),
        (
            "training.rounds",
            0,
            "training.rounds: must be a number >= 1 and <= 100,000, got 0: change it (times the "
            "server sends the model out)",
        ),
        (
            "training.sample_rate",
            "0.1",
            "training.sample_rate: must be a number, got '0.1': change it (chance that an example "
            "joins a step (Poisson sampling))",
        ),
        (
            "training.momentum",
            float("nan"),
            "training.momentum: must be a number >= 0 and < 1, got nan: change it, or leave it out "
            "to take 0.0",
        ),
        (
            "training.optimizer",
            "adm",
            "training.optimizer: must be `sgd`, `adam` or `adamw`, got 'adm': change it, or leave "
            "it out to take 'sgd'",
        ),
        (
            "training.lerning_rate",
            1,
            "training.lerning_rate: is not a setting here; did you mean `learning_rate`?",
        ),
        (
            "task.zzz",
            1,
            "task.zzz: is not a setting here: remove it; there are `kind`, `labels`",
        ),
        (
            "task.labels",
            ["a"],
            "task.labels: must have at least 2 entries, got a list of 1: change it (the class "
            "names, in order)",
        ),
        (
            "task.labels",
            "ham",
            "task.labels: must be a list, got 'ham': change it (the class names, in order)",
        ),
        ("task.labels", [1, "b"], "task.labels.0: must be text, got 1: put it in quotes"),
        ("task.labels", ["a", False], "task.labels.1: must be text, got false: put it in quotes"),
        (
            "task.labels",
            ["a", "a"],
            "task: labels must be different from each other: remove the repeats",
        ),
        (
            "name",
            "  ",
            "name: must have at least 1 characters, got '  ': change it (names the run in reports)",
        ),
        (
            "model",
            {"kind": "lst"},
            "model: its `kind` must be one of `linear`, `bag`, `lstm`, `gru`, `transformer`, got "
            "'lst'; did you mean `lstm`?",
        ),
        ("model", {}, "model: its `kind` is required: add it"),
        (
            "model",
            "lstm",
            "model: must be a section of settings, got 'lstm': change it (what learns it)",
        ),
        (
            "model",
            {"kind": "lstm", "hiden": 3},
            "model.hiden: is not a setting here; did you mean `hidden`?",
        ),
        (
            "model",
            {"kind": "gru", "gru": 3},
            "model.gru: is not a setting here: remove it; there are `kind`, `width`, `hidden`, "
            "`layers`",
        ),
        (
            "model",
            {"kind": "transformer", "width": 10, "heads": 4},
            "model: width must be a multiple of heads, got width 10 and heads 4: use width 8",
        ),
        (
            "privacy",
            "nothing",
            "privacy: must be `none` or a section with `unit`, `epsilon`, `delta`, "
            "`clipping_norm`, `noise_multiplier`, got 'nothing': change it (the guarantee, or "
            "`none`: training for comparison, without any)",
        ),
        (
            "privacy",
            None,
            "privacy: must be `none` or a section with `unit`, `epsilon`, `delta`, "
            "`clipping_norm`, `noise_multiplier`, got nothing: change it (the guarantee, or "
            "`none`: training for comparison, without any)",
        ),
        (
            "tokens.sha256",
            "abc",
            "tokens.sha256: must be a SHA-256 of 64 hexadecimal digits, got 'abc': change it, or "
            "leave it out",
        ),
        (
            "simulation.partition",
            3,
            "simulation.partition: must be a section of settings, got 3: change it, or "
            "leave it out",
        ),
        (
            "simulation.data.where",
            {"split": 1},
            "simulation.data.where.split: must be text, got 1: put it in quotes",
        ),
        (
            "simulation.sites",
            {"site-0001": {"policy": {"epsilon": 1}}},
            "simulation.sites.site-0001.policy.delta: is required: add it (the delta at which "
            "`epsilon` is counted)",
        ),
        (
            "simulation.clean",
            {"html": "no"},
            "simulation.clean.html: must be true or false, got 'no': change it, or leave it out to "
            "take true",
        ),
    ],
)
def test_a_line_says_which_setting_what_it_must_be_what_it_was_and_what_to_do(
    path: str, value: object, line: str
) -> None:
    assert errors_of(changed(path, value)) == [line]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0, -1, True, "1", None])
@pytest.mark.parametrize(
    "path",
    [
        "privacy.epsilon",
        "privacy.delta",
        "privacy.clipping_norm",
        "training.learning_rate",
        "training.sample_rate",
        "training.expected_batch_size",
        "training.rounds",
        "training.steps_per_round",
        "federation.server_learning_rate",
        "federation.update_clipping_norm",
        "simulation.partition.alpha",
        "simulation.clean.near_threshold",
        "tokens.max_tokens",
    ],
)
def test_a_number_that_bounds_something_is_refused_unless_finite_and_positive(
    path: str, bad: object
) -> None:
    lines = errors_of(changed(path, bad))

    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: must be a ")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5, 1.5])
@pytest.mark.parametrize(
    "path", ["training.momentum", "federation.server_momentum", "simulation.scrub.threshold"]
)
def test_a_share_outside_its_range_is_refused(path: str, bad: float) -> None:
    assert errors_of(changed(path, bad))[0].startswith(f"{path}: must be a number >= 0 and <")


def test_an_error_shows_little_of_a_long_value() -> None:
    (line,) = errors_of(changed("training.rounds", "x" * 10_000))

    assert len(line) < 250


def test_an_error_never_shows_what_lies_below_a_setting() -> None:
    (line,) = errors_of(changed("training.rounds", {"inner": "kept to itself"}))

    assert "kept to itself" not in line
    assert "got a section" in line


def test_what_is_no_plain_value_is_refused() -> None:
    assert errors_of(changed("training.rounds", object())) == [
        "must hold plain values alone, as YAML writes them"
    ]


def test_text_that_is_no_unicode_is_refused() -> None:
    assert errors_of(changed("name", "\ud800")) == [
        "is not valid JSON or not valid Unicode: mend it"
    ]


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["name", "task", "labels", "model", "kind", "privacy", "x", "rounds"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_content_leads_to_anything_but_a_plan_or_a_config_error(content: object) -> None:
    mapping = content if isinstance(content, dict) else {"task": content, "privacy": content}

    with pytest.raises(ConfigError) as caught:
        parse_plan(mapping, base_dir=Path("/base"), source="RUN.yaml")

    assert str(caught.value)


def test_the_meaning_of_a_setting_is_that_of_its_docstring() -> None:
    found = meanings(TrainingConfig)

    assert found["rounds"] == "Times the server sends the model out."
    # Written over two lines there.
    assert found["expected_batch_size"].endswith("times the examples of a usual site.")
    assert found.keys() == TrainingConfig.model_fields.keys()


@pytest.mark.parametrize("section", [Plan, *Section.__subclasses__()], ids=lambda s: s.__name__)
def test_every_setting_has_a_meaning(section: type[Section]) -> None:
    assert meanings(section).keys() == section.model_fields.keys()
