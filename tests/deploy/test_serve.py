"""`discreet server`: what it takes, what it refuses, before any site comes."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from discreet.common.config import load_plan
from discreet.deploy.cli import cli
from discreet.deploy.serve import ServeOptions, _link_options

PLAN = {
    "name": "tiny",
    "task": {"labels": ["ham", "spam"]},
    "model": {"kind": "linear", "buckets": 64},
    "privacy": "none",
    "training": {
        "rounds": 2,
        "sample_rate": 1.0,
        "expected_batch_size": 8,
        "learning_rate": 1.0,
    },
    "federation": {"wait_seconds": 0.2},
}


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(orjson.dumps(PLAN))
    return path


def serve(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["server", *map(str, arguments)])


def certs_of(folder: Path) -> Path:
    made = CliRunner().invoke(cli, ["certs", "init", "--certs", str(folder), "--name", "127.0.0.1"])
    assert made.exit_code == 0, made.output
    return folder


def test_a_plan_needs_no_simulation_and_nobody_in_time_is_code_4(
    run_file: Path, tmp_path: Path
) -> None:
    result = serve(run_file, "--out", tmp_path / "run", "--bind", "127.0.0.1:0")

    assert result.exit_code == 4, result.output
    assert "federation.min_sites is 1" in result.stderr
    assert "Traceback" not in result.output


def test_what_was_begun_can_be_resumed_and_keeps_its_identity(
    run_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    serve(run_file, "--out", run_dir, "--bind", "127.0.0.1:0")
    first = orjson.loads((run_dir / "status.json").read_bytes())

    result = serve("--resume", run_dir, "--bind", "127.0.0.1:0")

    assert result.exit_code == 4
    assert orjson.loads((run_dir / "status.json").read_bytes())["run"] == first["run"]
    assert first["state"] == "stopped"


def test_without_privacy_and_without_tls_it_says_so(run_file: Path, tmp_path: Path) -> None:
    result = serve(run_file, "--out", tmp_path / "run", "--bind", "127.0.0.1:0")

    assert "warning: privacy: none" in result.stderr
    assert "no TLS on 127.0.0.1:0" in result.stderr


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0"])
def test_without_tls_it_listens_on_this_machine_alone(
    run_file: Path, tmp_path: Path, bind: str
) -> None:
    result = serve(run_file, "--out", tmp_path / "run", "--bind", bind)

    assert result.exit_code == 2
    assert "--insecure" in result.stderr


def test_insecure_is_taken_at_its_word_and_printed(run_file: Path, tmp_path: Path) -> None:
    result = serve(run_file, "--out", tmp_path / "run", "--bind", "127.0.0.1:0", "--insecure")

    assert result.exit_code == 4
    assert "--insecure: no TLS" in result.stderr


def test_a_key_that_others_may_read_is_refused(run_file: Path, tmp_path: Path) -> None:
    certs = certs_of(tmp_path / "certs")
    (certs / "server.key").chmod(0o644)

    result = serve(run_file, "--out", tmp_path / "run", "--certs", certs)

    assert result.exit_code == 2
    assert "server.key" in result.stderr


def test_sites_enrol_only_where_the_key_of_the_authority_lies(
    run_file: Path, tmp_path: Path
) -> None:
    certs, plan = certs_of(tmp_path / "certs"), load_plan(run_file)
    options = ServeOptions(bind="127.0.0.1:7443", certs=certs)

    with_key = _link_options(plan, tmp_path, options)
    (certs / "ca.key").unlink()
    without = _link_options(plan, tmp_path, options)

    assert with_key.enrol is not None
    assert with_key.enrol_bind == "127.0.0.1:7444"
    assert without.enrol is None
    assert without.enrol_bind is None
    assert without.tls is not None


def test_where_some_are_not_waited_for_replies_count_as_they_come(
    run_file: Path, tmp_path: Path
) -> None:
    options = ServeOptions(bind="127.0.0.1:0")
    plan = load_plan(run_file)
    many = load_plan(run_file, ["federation.cohort_size=2", "federation.oversample=1.5"])

    assert _link_options(plan, tmp_path, options).ordered
    assert not _link_options(many, tmp_path, options).ordered


@pytest.mark.parametrize("extra", [["run.yaml"], ["--out", "x"], ["--set", "name=x"]])
def test_resume_takes_nothing_that_would_change_the_run(extra: list[str], tmp_path: Path) -> None:
    result = serve("--resume", tmp_path, *extra)

    assert result.exit_code == 2
    assert "--resume takes the plan from the run folder" in result.stderr


def test_a_plan_or_a_run_is_required() -> None:
    assert serve().exit_code == 2


def test_a_private_plan_that_no_noise_can_satisfy_fails_before_it_listens(
    run_file: Path, tmp_path: Path
) -> None:
    privacy = "privacy={unit: example, epsilon: 1.0, delta: 1e-5, noise_multiplier: 0.01}"

    result = serve(run_file, "--out", tmp_path / "run", "--bind", "127.0.0.1:0", "--set", privacy)

    assert result.exit_code == 2
    assert "privacy.noise_multiplier" in result.stderr
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("federation.min_sites=0", "federation.min_sites"),
        ("federation.oversample=0.5", "federation.oversample"),
        ("federation.oversample=.nan", "federation.oversample"),
        ("federation.wait_seconds=.inf", "federation.wait_seconds"),
        ("federation.round_timeout_seconds=0", "federation.round_timeout_seconds"),
        ("federation={min_sites: 3, cohort_size: 2}", "cohort_size must be at least min_sites"),
    ],
)
def test_a_wrong_setting_of_the_federation_is_named(
    run_file: Path, tmp_path: Path, setting: str, words: str
) -> None:
    result = serve(run_file, "--out", tmp_path / "run", "--set", setting)

    assert result.exit_code == 2
    assert words in result.stderr


def test_how_long_a_server_waits_is_nothing_that_a_site_approves(run_file: Path) -> None:
    patient = load_plan(run_file, ["federation.wait_seconds=9", "federation.min_sites=7"])
    other = load_plan(run_file, ["federation.update_clipping_norm=3"])

    assert patient.fingerprint == load_plan(run_file).fingerprint
    assert other.fingerprint != patient.fingerprint
