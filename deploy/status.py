"""What a server is doing, in a file of its run folder: written by the server, shown by `status`.

The file holds public numbers only, is replaced whole, and says when it was written: a server
that was killed is told by a file that grows old.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import orjson
from pydantic import TypeAdapter, ValidationError

from discreet.common.errors import DataError

SCHEMA = 1
"""Version of the file."""

STATUS_FILE = "status.json"
"""Its name in a run folder."""

STALE_SECONDS = 10.0
"""A server writes each second; one that has not for so long is gone."""

_WRITE_SECONDS = 1.0

State = Literal["waiting", "training", "finished", "stopped"]


@dataclass(frozen=True, slots=True)
class Status:
    """A server at one moment.

    Attributes:
        name: Name of the plan.
        run: Identity of the run.
        state: What it does.
        address: Where it listens.
        is_secure: Whether it asks for certificates.
        round: The last round that is done.
        total_rounds: Rounds of the plan.
        min_sites: The quorum.
        attending: Names of the sites that are there.
        updates: Updates taken in the last round; none before the first.
        accuracy: On the public split; none if it was not measured.
        epsilon_max: Largest epsilon any site has spent in this run, unit example; none without
            privacy or before the first round.
        refused: Site name -> the code it sent in the last round.
        failed: Site name -> why its reply was left out in the last round.
        updated: When this was written, seconds since 1970.
        schema: Version of this file.
    """

    name: str
    run: str
    state: State
    address: str
    is_secure: bool
    round: int
    total_rounds: int
    min_sites: int
    attending: tuple[str, ...] = ()
    updates: int | None = None
    accuracy: float | None = None
    epsilon_max: float | None = None
    refused: dict[str, str] | None = None
    failed: dict[str, str] | None = None
    updated: float = 0.0
    schema: int = SCHEMA


class StatusFile:
    """Writes a server's status each second while the context is open, and at each change.

    Args:
        run_dir: The run folder.
        first: The status to begin with.
        attending: Gives the names of the sites that are there.
    """

    def __init__(
        self, run_dir: Path, first: Status, attending: Callable[[], tuple[str, ...]]
    ) -> None:
        self._path = run_dir / STATUS_FILE
        self._status = first
        self._attending = attending
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="status", daemon=True)

    def __enter__(self) -> StatusFile:
        """Begin to write."""
        self.set(self._status)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the last status: the run ended, or was stopped."""
        self._closed.set()
        self._thread.join()
        if self._status.state != "finished":
            self.set(replace(self._status, state="stopped"))

    @property
    def status(self) -> Status:
        """The last status that was set."""
        return self._status

    def set(self, status: Status) -> None:
        """Replace the status."""
        with self._lock:
            self._status = replace(status, attending=self._attending(), updated=time.time())
            aside = self._path.with_name(f".{STATUS_FILE}.part")
            aside.write_bytes(orjson.dumps(asdict(self._status)))
            # Without a sync: after a crash of the machine it is out of date anyway.
            aside.replace(self._path)

    def _tick(self) -> None:
        while not self._closed.wait(_WRITE_SECONDS):
            self.set(self._status)


def read_status(run_dir: Path) -> Status:
    """The status in a run folder.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    path = run_dir / STATUS_FILE
    if not path.is_file():
        raise DataError(f"{path}: there is no status: name the run folder of a `discreet server`")
    try:
        return TypeAdapter(Status).validate_json(path.read_bytes())
    except ValidationError:
        raise DataError(f"{path}: is damaged or of another version: ask the server's log") from None


def is_stale(status: Status) -> bool:
    """Whether the server has gone without a word."""
    has_ended = status.state in {"finished", "stopped"}
    return not has_ended and time.time() - status.updated > STALE_SECONDS


def is_over(status: Status) -> bool:
    """Whether the server has said its last word."""
    return status.state in {"finished", "stopped"} or is_stale(status)


def status_json(status: Status) -> str:
    """The status for programs, one line; `stale` says that the server has gone without a word."""
    return orjson.dumps({**asdict(status), "stale": is_stale(status)}).decode()


def status_lines(status: Status) -> list[str]:
    """The status for people; wherever an epsilon stands, its unit stands beside it."""
    state = "killed, or hung: no word from it" if is_stale(status) else status.state
    security = "mutual TLS" if status.is_secure else "no TLS"
    lines = [
        f"run      {status.name}  {status.run}  {state}",
        f"server   {status.address}  {security}",
        f"rounds   {status.round} of {status.total_rounds}",
        f"sites    {len(status.attending)} there, {status.min_sites} needed",
        *(f"         {name}" for name in status.attending[:20]),
    ]
    if status.updates is not None:
        lines.append(f"last     {status.updates} updates{_measured(status)}")
    lines += [f"refused  {name}: {code}" for name, code in (status.refused or {}).items()]
    lines += [f"failed   {name}: {cause}" for name, cause in (status.failed or {}).items()]
    return lines


def _measured(status: Status) -> str:
    accuracy = "" if status.accuracy is None else f", accuracy {status.accuracy:.4f}"
    if status.epsilon_max is None:
        return accuracy
    from discreet.server.guarantee import rounded_up

    return f"{accuracy}, epsilon {rounded_up(status.epsilon_max, 2):.2f} (unit example)"
