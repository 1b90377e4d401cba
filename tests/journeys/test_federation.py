"""A federation of real processes with mutual TLS: the README's commands, and what goes wrong.

Without noise the weights must be those of `discreet simulate`, bit for bit, whatever was killed
on the way: nothing is lost, nothing counts twice.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import torch
from federation_runs import (
    PATIENCE_SECONDS,
    Federation,
    debits_of,
    free_address,
    status_of,
    wait_for_round,
    wait_until,
    weights_of,
)
from tiny_runs import report_of, rows, simulate, write_rows, write_run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SITES = ("site-0000", "site-0001")

# Rounds of some 50 ms, so that a kill falls into the run.
ROUNDS = 30
TRAINING = {
    "rounds": ROUNDS,
    "steps_per_round": 10,
    "sample_rate": 0.5,
    "expected_batch_size": 8,
    "learning_rate": 0.5,
    "seed": 11,
}


def written_plan(folder: Path, **sections: object) -> Path:
    """RUN.yaml for two sites, and the corpus that is dealt to them."""
    write_rows(folder / "texts.jsonl", rows(40))
    defaults = {"privacy": "none", "training": TRAINING, "simulation": {"num_sites": 2}}
    return write_run(folder, **{**defaults, **sections})


def dealt(folder: Path, **sections: object) -> Federation:
    """Two sites and an authority; nobody is enrolled yet."""
    run_file = written_plan(folder, **sections)
    federation = Federation(folder / "demo", free_address())
    federation.do("deal", run_file, "--out", federation.folder, "--server", federation.address)
    certs = federation.folder / "operator"
    federation.do("certs", "init", "--certs", certs, "--name", "127.0.0.1")
    return federation


def enrolled_clients(federation: Federation, *options: str) -> dict[str, subprocess.Popen[bytes]]:
    """Both clients; they enrol at the server, which must be there already."""
    wait_until(lambda: is_listening(federation), "the server listens")
    clients = {}
    for site in SITES:
        certs = federation.folder / "operator"
        token = federation.folder.parent / f"{site}.token"
        token.write_text(federation.do("certs", "token", site, "--certs", certs), encoding="utf-8")
        clients[site] = federation.client(site, "--token", str(token), *options)
    return clients


def is_under_way(run_dir: Path) -> bool:
    """Whether rounds are left: else a kill would prove nothing."""
    status = status_of(run_dir)
    return status is not None and status.round < ROUNDS


def is_listening(federation: Federation) -> bool:
    status = status_of(federation.folder / "run")
    return status is not None


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Federation]:
    """A server and two enrolled clients at work."""
    with dealt(tmp_path) as federation:
        run_dir = federation.folder / "run"
        federation.server(federation.folder / "run.yaml", "--out", run_dir)
        yield federation


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that `discreet simulate` makes of the same plan."""
    folder = tmp_path_factory.mktemp("simulated")
    result = simulate(written_plan(folder), "--out", folder / "run", "--quiet")
    assert result.exit_code == 0, result.output
    return weights_of(folder / "run")


def is_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether two models are the same bit for bit."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def readme_commands() -> list[str]:
    section = README.partition("## A federation\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_five_commands_of_the_readme_make_a_federation(tmp_path: Path) -> None:
    commands = readme_commands()
    assert len(commands) == 5
    run_file = written_plan(tmp_path, privacy={"unit": "example", "epsilon": 8.0, "delta": 1e-5})
    address = free_address()
    # The demo's plan and port are the only things that the test replaces.
    python = shlex.join([sys.executable, "-m", "discreet.deploy.cli"])
    run = [command.replace(".venv/bin/discreet", python) for command in commands]
    run[0] += f" {run_file} --server {address}"
    run[2] += f" --bind {address}"

    for command in run[:2]:
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=PATIENCE_SECONDS)
    with Federation(tmp_path / "demo", address) as federation:
        terminals = [_terminal(federation, run[2], "server")]
        wait_until(lambda: is_listening(federation), "the server listens")
        terminals += [_terminal(federation, command, "client") for command in run[3:]]

        assert [federation.ends(terminal) for terminal in terminals] == [0, 0, 0]
        report = report_of(tmp_path / "demo" / "run")
        rounds = report["rounds"]
        assert isinstance(rounds, list)
        assert [each["sites"] for each in rounds] == [2] * ROUNDS
        assert all(debits_of(federation, site) == list(range(1, ROUNDS + 1)) for site in SITES)
        assert f"no TLS on {address}" not in federation.output(terminals[0])


def _terminal(federation: Federation, command: str, name: str) -> subprocess.Popen[bytes]:
    path = federation.folder.parent / f"{len(federation.started)}-{name}.log"
    with path.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=federation.folder.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    federation.started.append((process, path))
    return process


def test_a_federation_learns_what_a_simulation_learns_bit_for_bit(
    running: Federation, simulated: dict[str, torch.Tensor]
) -> None:
    clients = enrolled_clients(running, "--once")

    server = running.started[0][0]

    assert running.ends(server) == 0
    assert [running.ends(client) for client in clients.values()] == [0, 0]
    assert is_same(weights_of(running.folder / "run"), simulated)
    assert all(debits_of(running, site) == list(range(1, ROUNDS + 1)) for site in SITES)


def test_a_server_that_is_killed_goes_on_and_nothing_counts_twice(
    running: Federation, simulated: dict[str, torch.Tensor]
) -> None:
    run_dir = running.folder / "run"
    clients = enrolled_clients(running, "--once")
    wait_for_round(run_dir, 3)
    killed = running.started[0][0]

    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert is_under_way(run_dir)
    assert all(client.poll() is None for client in clients.values())
    server = running.server("--resume", run_dir)

    assert running.ends(server) == 0
    assert [running.ends(client) for client in clients.values()] == [0, 0]
    assert is_same(weights_of(running.folder / "run"), simulated)
    # The clients lived on: the round that was asked twice is debited once.
    assert all(debits_of(running, site) == list(range(1, ROUNDS + 1)) for site in SITES)


def test_a_client_that_is_killed_comes_back_and_nothing_is_lost(
    running: Federation, simulated: dict[str, torch.Tensor]
) -> None:
    run_dir = running.folder / "run"
    clients = enrolled_clients(running, "--once")
    wait_for_round(run_dir, 3)

    clients["site-0001"].kill()
    assert clients["site-0001"].wait() == -signal.SIGKILL
    assert is_under_way(run_dir)
    clients["site-0001"] = running.client("site-0001", "--once")

    assert running.ends(running.started[0][0]) == 0
    assert [running.ends(client) for client in clients.values()] == [0, 0]
    assert is_same(weights_of(running.folder / "run"), simulated)
    # A debit without a release stays: at most one round is paid for twice, and none is missing.
    debits = debits_of(running, "site-0001")
    assert sorted(set(debits)) == list(range(1, ROUNDS + 1))
    assert len(debits) <= ROUNDS + 1


def test_clients_stay_for_the_next_run_and_leave_in_good_order(running: Federation) -> None:
    clients = enrolled_clients(running)
    assert running.ends(running.started[0][0]) == 0
    second = running.folder / "second"

    server = running.server(running.folder / "run.yaml", "--out", second)

    assert running.ends(server) == 0
    # As if killed between its last round and its last word: no answer to that has come yet.
    shutil.rmtree(second / "link")
    assert running.ends(running.server("--resume", second)) == 0
    for client in clients.values():
        assert client.poll() is None
        assert running.output(client).count("is over") == 3
        client.send_signal(signal.SIGTERM)
    assert [running.ends(client) for client in clients.values()] == [0, 0]
    assert all(debits_of(running, site) == [*range(1, ROUNDS + 1)] * 2 for site in SITES)


def test_a_stopped_server_says_how_to_go_on(running: Federation) -> None:
    run_dir = running.folder / "run"
    wait_until(lambda: is_listening(running), "the server listens")
    server = running.started[0][0]

    server.send_signal(signal.SIGTERM)

    assert running.ends(server) == 130
    assert "discreet server --resume" in running.output(server)
    status = status_of(run_dir)
    assert status is not None
    assert status.state == "stopped"


def test_without_enough_sites_the_server_ends_with_code_4(tmp_path: Path) -> None:
    with dealt(tmp_path) as federation:
        server = federation.server(
            federation.folder / "run.yaml", "--set", "federation.wait_seconds=0.5"
        )

        assert federation.ends(server) == 4
        assert "federation.min_sites is 2" in federation.output(server)


def test_a_site_that_is_revoked_is_out_and_the_server_goes_on_without_it(tmp_path: Path) -> None:
    with dealt(tmp_path) as federation:
        run_dir = federation.folder / "run"
        options = ("--set", "federation.min_sites=1", "--set", "training.rounds=2000")
        federation.server(federation.folder / "run.yaml", "--out", run_dir, *options)
        clients = enrolled_clients(federation)
        wait_until(lambda: has_attending(run_dir, SITES), "both sites attend")
        certs = federation.folder / "operator"

        federation.do("certs", "revoke", "site-0001", "--certs", certs)

        wait_until(lambda: has_attending(run_dir, SITES[:1]), "one is left")
        assert clients["site-0000"].poll() is None
        before = status_of(run_dir)
        assert before is not None
        wait_for_round(run_dir, before.round + 2)


def has_attending(run_dir: Path, names: tuple[str, ...]) -> bool:
    status = status_of(run_dir)
    return status is not None and status.attending == names


def test_a_site_with_no_certificate_is_told_so_in_one_line(tmp_path: Path) -> None:
    with dealt(tmp_path) as federation:
        client = federation.client("site-0000")

        assert federation.ends(client) == 2
        assert "site.key" in federation.output(client)
        assert "Traceback" not in federation.output(client)


def test_one_state_folder_serves_one_client(running: Federation) -> None:
    clients = enrolled_clients(running)
    wait_for_round(running.folder / "run", 1)

    second = running.client("site-0000")

    assert running.ends(second) == 2
    assert "is in use by another client" in running.output(second)
    assert clients["site-0000"].poll() is None


def test_logs_are_json_where_asked_and_hold_no_text(tmp_path: Path) -> None:
    with dealt(tmp_path, privacy={"unit": "example", "epsilon": 8.0, "delta": 1e-5}) as federation:
        run_dir = federation.folder / "run"
        server = federation.server(federation.folder / "run.yaml", "--out", run_dir, "--json")
        clients = enrolled_clients(federation, "--once", "--json")

        assert federation.ends(server) == 0
        assert [federation.ends(client) for client in clients.values()] == [0, 0]
        for process in (server, *clients.values()):
            output = federation.output(process)
            assert all(isinstance(orjson.loads(line), dict) for line in output.splitlines())
            assert "soup" not in output
            assert "prize" not in output
