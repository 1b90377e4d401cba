"""Nothing is looked up or sent: the whole way through the house works without a network.

An audit hook is put into every process that the command starts, workers included. It notes
and refuses each address that is looked up and each connection, so that an attempt that is
swallowed is seen as well.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tiny_runs import COMMAND, start, write_run

HOOK = """
import os, sys

_EVENTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
_LOG = os.environ["NETWORK_LOG"]


def _refuse(event, arguments):
    if event in _EVENTS:
        with open(_LOG, "a") as file:
            file.write(event + "\\n")
        raise OSError("there is no network")


sys.addaudithook(_refuse)
with open(_LOG + ".hooked", "a") as file:
    file.write(str(os.getpid()) + "\\n")
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    return tmp_path / "network.log"


def without_network(log: Path) -> dict[str, str]:
    """The environment of a process that is watched, on a machine without caches."""
    home = log.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        "PYTHONPATH": str(log.parent / "hook"),
        "NETWORK_LOG": str(log),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
    }


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def test_a_run_and_its_predictions_need_no_network(tmp_path: Path, log: Path) -> None:
    scrub = {"enabled": True, "workers": 1}
    run_file = write_run(
        tmp_path,
        simulation={"scrub": scrub},
        evaluation={"data": {"path": "texts.jsonl"}, "scrub": scrub},
    )
    run_dir = tmp_path / "out"

    process = start(run_file, "--out", run_dir, "--quiet", env=without_network(log))
    stdout, stderr = process.communicate(timeout=120)
    predicted = subprocess.run(
        [*COMMAND, "predict", str(run_dir)],
        input="see www.example.org and mail someone@example.co.uk\n",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **without_network(log)},
        check=False,
    )

    assert (process.returncode, stderr) == (0, "")
    assert stdout == f"{run_dir / 'report.html'}\n"
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert len(predicted.stdout.splitlines()) == 1
    assert not log.exists(), log.read_text(encoding="utf-8")
    # The run, its scrubbing workers and the prediction were all watched.
    assert num_lines(Path(f"{log}.hooked")) >= 3


def test_the_watch_sees_what_it_is_there_for(log: Path) -> None:
    subprocess.run(
        [COMMAND[0], "-c", "import socket; socket.create_connection(('localhost', 9))"],
        capture_output=True,
        timeout=60,
        env={**os.environ, **without_network(log)},
        check=False,
    )

    assert "socket.getaddrinfo" in log.read_text(encoding="utf-8")
