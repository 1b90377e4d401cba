"""A federation of real processes on this machine: started, watched, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_runs import COMMAND

from discreet.common.errors import DataError
from discreet.deploy.cli import cli
from discreet.deploy.status import Status, read_status
from discreet.privacy.ledger import Ledger

PATIENCE_SECONDS = 120.0


def free_address() -> str:
    """HOST:PORT with a free port, and a free one above it to enrol at."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return f"127.0.0.1:{port}"
            except (OSError, OverflowError):
                continue


def wait_until(is_true: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Look again and again; fail with `what` when it takes too long."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)


@dataclass
class Federation:
    """Processes that all end with the context.

    Attributes:
        folder: Holds what `discreet deal` and `discreet certs` have made.
        address: Where the server listens.
        started: Every process, in order, with the file of its output.
    """

    folder: Path
    address: str
    started: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def __enter__(self) -> Federation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, path in self.started:
            # The whole session: behind a shell's pipe a client would live on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if error is not None:
                print(f"--- {path.name}\n{path.read_text(encoding='utf-8')}")  # noqa: T201

    def start(self, *arguments: str | Path, name: str) -> subprocess.Popen[bytes]:
        """A command of its own process."""
        path = self.folder.parent / f"{len(self.started):02d}-{name}.log"
        with path.open("wb") as output:
            process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                cwd=self.folder.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.started.append((process, path))
        return process

    def do(self, *arguments: str | Path) -> str:
        """A command that ends by itself, in this process: imports are paid for once."""
        result = CliRunner().invoke(cli, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.stdout

    def server(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """The server, with its certificates."""
        certs = self.folder / "operator"
        return self.start(
            "server", *arguments, "--bind", self.address, "--certs", certs, name="server"
        )

    def client(self, site: str, *options: str) -> subprocess.Popen[bytes]:
        """A client that is enrolled already."""
        return self.start("client", self.folder / site / "site.yaml", *options, name=site)

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has written so far."""
        path = next(path for each, path in self.started if each is process)
        return path.read_text(encoding="utf-8")

    def ends(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code, once the process has ended."""
        return process.wait(timeout=PATIENCE_SECONDS)


def status_of(run_dir: Path) -> Status | None:
    """What the server says, if it has said anything yet."""
    try:
        return read_status(run_dir)
    except DataError:
        return None


def wait_for_round(run_dir: Path, number: int) -> None:
    """Wait until so many rounds are done."""

    def is_done() -> bool:
        status = status_of(run_dir)
        return status is not None and status.round >= number

    wait_until(is_done, f"round {number} of {run_dir.name}")


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    """The finished model's."""
    weights: dict[str, torch.Tensor] = load_file(run_dir / "model" / "model.safetensors")
    return weights


def debits_of(federation: Federation, site: str) -> list[int]:
    """The rounds in a site's ledger, in order of debit."""
    ledger = Ledger.open(federation.folder / site / "state" / "ledger.sqlite", data_set=site)
    try:
        ledger.verify()
        return [entry.round_number for entry in ledger.entries() if entry.round_number]
    finally:
        ledger.close()
