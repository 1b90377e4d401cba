"""RUN.yaml and SITE.yaml: what is accepted, and every way to be told what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from discreet.common.config import dump_plan, load_plan, load_site, parse_plan, plan_from_json
from discreet.common.errors import ConfigError
from discreet.common.plan import LinearModel, PrivacyConfig, RecurrentModel

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

SITE = """
name: north
data: {path: texts}
policy: {epsilon: 8, delta: 1e-5}
state_dir: state
"""


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


def write(tmp_path: Path, content: dict[str, object]) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return path


def test_a_good_plan_is_taken_as_it_is() -> None:
    plan = parse_plan(PLAN, base_dir=Path("/base"), source="RUN.yaml")

    assert plan.name == "test"
    assert plan.model == LinearModel()
    assert isinstance(plan.privacy, PrivacyConfig)
    assert plan.privacy.epsilon == 8.0
    assert plan.training.expected_batch_size == 10.0


# Paths


def test_a_relative_path_means_what_it_means_beside_its_file(tmp_path: Path) -> None:
    content = changed("tokens", {"path": "../tok/tokenizer.json"})
    folder = tmp_path / "plans"
    folder.mkdir()

    plan = load_plan(write(folder, content))

    assert plan.tokens.path == tmp_path / "tok" / "tokenizer.json"
    assert plan.simulation is not None
    assert plan.simulation.data.path == str(folder / "texts" / "*.jsonl")


def test_an_embedded_corpus_is_not_a_path() -> None:
    plan = parse_plan(PLAN, base_dir=Path("/base"), source="RUN.yaml")

    assert plan.evaluation is not None
    assert plan.evaluation.data.path == "embedded:sms_spam"


def test_an_absolute_path_and_a_home_folder_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")

    home = parse_plan(changed("tokens.path", "~/t.json"), base_dir=Path("/base"), source="R")
    absolute = parse_plan(changed("tokens.path", "/t.json"), base_dir=Path("/base"), source="R")

    assert home.tokens.path == Path("/home/someone/t.json")
    assert absolute.tokens.path == Path("/t.json")


def test_a_field_that_is_called_path_is_left_alone() -> None:
    content = changed("simulation.data", {"path": "x", "where": {"path": "relative"}})

    plan = parse_plan(content, base_dir=Path("/base"), source="RUN.yaml")

    assert plan.simulation is not None
    assert plan.simulation.data.where == {"path": "relative"}


def test_what_is_given_is_not_changed() -> None:
    content = copy.deepcopy(PLAN)

    parse_plan(content, base_dir=Path("/base"), source="RUN.yaml")

    assert content == PLAN


# --set


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.rounds=3", ("training", "rounds"), 3),
        ("training.learning_rate=1e-5", ("training", "learning_rate"), 1e-5),
        ("privacy=none", ("privacy",), "none"),
        ("task.labels=[no, off]", ("task", "labels"), ("no", "off")),
        ("name=a=b", ("name",), "a=b"),
        (" name = x ", ("name",), "x"),
        ("model={kind: lstm, hidden: 8}", ("model",), RecurrentModel(kind="lstm", hidden=8)),
        ("federation.cohort_size=null", ("federation", "cohort_size"), None),
    ],
)
def test_an_override_replaces_a_setting(
    tmp_path: Path, override: str, path: Sequence[str], value: object
) -> None:
    found: object = load_plan(write(tmp_path, PLAN), [override])

    for name in path:
        found = getattr(found, name)
    assert found == value


def test_overrides_are_applied_before_anything_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, changed("training.rounds", "wrong"))

    plan = load_plan(path, ["training.rounds=1", "training.rounds=4"])

    assert plan.training.rounds == 4


def test_a_path_on_the_command_line_starts_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, PLAN)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    plan = load_plan(path, ["simulation.data.path=texts.csv"])

    assert plan.simulation is not None
    assert plan.simulation.data.path == str(elsewhere / "texts.csv")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.rounds", "must be SECTION.SETTING=VALUE"),
        ("=3", "must be SECTION.SETTING=VALUE"),
        ("training..rounds=3", "must be SECTION.SETTING=VALUE"),
        ("training.rounds=[1", "--set training.rounds:1:3: "),
        ("training.ronds=3", "training.ronds: is not a setting here; did you mean `rounds`?"),
        ("trainig.rounds=3", "trainig: is not a setting here; did you mean `training`?"),
        ("training.rounds=x", "training.rounds: must be a whole number, got 'x'"),
        (
            "training.rounds.x=3",
            "--set training.rounds.x: `training.rounds` is 2 and has no settings below it",
        ),
        ("task.labels.0=x", "`task.labels` is a list of 2 and has no settings below it"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plan(write(tmp_path, PLAN), [override])

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Sites


def test_a_good_site_is_taken_with_paths_beside_its_file(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(SITE, encoding="utf-8")

    site = load_site(path)

    assert site.data.path == str(tmp_path / "texts")
    assert site.state_dir == tmp_path / "state"
    assert site.scrubbed_dir == tmp_path / "state" / "store"
    assert site.policy.delta == 1e-5


def test_a_site_without_a_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("name: north\ndata: {path: t}\nstate_dir: s\n", encoding="utf-8")

    with pytest.raises(ConfigError, match="policy: is required: add it"):
        load_site(path)


# Plans that were written by this program


@pytest.mark.parametrize("privacy", [PLAN["privacy"], "none"])
def test_a_plan_that_was_written_is_read_back_as_equal(tmp_path: Path, privacy: object) -> None:
    plan = parse_plan(
        changed("privacy", privacy) | {"model": {"kind": "gru"}}, base_dir=tmp_path, source="R"
    )
    path = tmp_path / "plan.yaml"

    path.write_text(dump_plan(plan), encoding="utf-8")

    assert load_plan(path) == plan


def test_a_plan_from_the_wire_has_the_fingerprint_that_was_sent() -> None:
    plan = parse_plan(PLAN, base_dir=Path("/base"), source="RUN.yaml")

    received = plan_from_json(plan.shared_json())

    assert received.fingerprint == plan.fingerprint
    assert received.simulation is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        b'{"name": NaN}',
        b"[" * 10_000,
        orjson.dumps({**PLAN, "privacy": {"unit": "example", "epsilon": None, "delta": 1}}),
    ],
)
def test_a_plan_from_the_wire_that_is_wrong_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="the server's plan: "):
        plan_from_json(data)
