"""`discreet deal`: the sites of a simulation, as folders of a federation."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from discreet.common.config import load_plan, load_site
from discreet.common.corpus import read_corpus
from discreet.deploy.cli import cli
from discreet.deploy.partition import deal

PLAN = {
    "name": "tiny",
    "task": {"labels": ["ham", "spam"]},
    "model": {"kind": "linear", "buckets": 64},
    "privacy": {"unit": "example", "epsilon": 3.0, "delta": 1e-5},
    "training": {"rounds": 2, "sample_rate": 1.0, "expected_batch_size": 8, "learning_rate": 1.0},
    "simulation": {"data": {"path": "texts.jsonl"}, "num_sites": 3},
}


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    labels = ("ham", "spam")
    rows = [{"text": f"soup at noon {i}", "label": labels[i % 2]} for i in range(20)]
    lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    (tmp_path / "texts.jsonl").write_bytes(lines)
    path = tmp_path / "run.yaml"
    path.write_bytes(orjson.dumps(PLAN))
    return path


def dealt(run_file: Path, *options: str) -> Result:
    folder = run_file.parent / "fed"
    return CliRunner().invoke(cli, ["deal", str(run_file), "--out", str(folder), *options])


def test_each_site_gets_what_the_simulation_would_give_it(run_file: Path) -> None:
    assert dealt(run_file).exit_code == 0

    plan = load_plan(run_file)
    assert plan.simulation is not None
    expected = deal(list(read_corpus(plan.simulation.data)), plan.simulation.partition, 3)
    for number, rows in enumerate(expected):
        site = load_site(run_file.parent / "fed" / f"site-{number:04d}" / "site.yaml")
        given = [(row.text, row.label) for row in read_corpus(site.data)]
        assert given == [(row.text, row.label) for row in rows]


def test_a_site_is_ready_to_take_part(run_file: Path) -> None:
    dealt(run_file, "--server", "127.0.0.1:9000")

    site = load_site(run_file.parent / "fed" / "site-0001" / "site.yaml")

    assert site.name == "site-0001"
    assert site.server == "127.0.0.1:9000"
    assert site.policy.epsilon == 3.0
    assert site.state_dir == run_file.parent / "fed" / "site-0001" / "state"
    assert site.certs == run_file.parent / "fed" / "site-0001" / "certs"


def test_the_server_waits_for_all_sites_and_the_sites_approve_the_same_plan(run_file: Path) -> None:
    dealt(run_file, "--sites", "4")

    plan = load_plan(run_file.parent / "fed" / "run.yaml")

    assert plan.federation.min_sites == 4
    assert plan.simulation is not None
    assert plan.simulation.num_sites == 4
    assert plan.fingerprint == load_plan(run_file).fingerprint


def test_text_is_readable_by_its_owner_alone(run_file: Path) -> None:
    dealt(run_file)

    folder = run_file.parent / "fed" / "site-0000"

    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "texts.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_folder_with_files_is_left_alone(run_file: Path) -> None:
    (run_file.parent / "fed").mkdir()
    (run_file.parent / "fed" / "thesis.txt").write_text("mine", encoding="utf-8")

    result = dealt(run_file)

    assert result.exit_code == 2
    assert "must be new or empty" in result.stderr


@pytest.mark.parametrize("address", ["here", "host:99999"])
def test_a_wrong_address_is_refused_before_anything_is_written(
    run_file: Path, address: str
) -> None:
    result = dealt(run_file, "--server", address)

    assert result.exit_code == 2
    assert not (run_file.parent / "fed").exists()


def test_a_plan_without_a_simulation_has_nothing_to_deal(run_file: Path) -> None:
    result = dealt(run_file, "--set", "simulation=null")

    assert result.exit_code == 2
    assert "simulation" in result.stderr
