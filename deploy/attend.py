"""A site that takes part: its text made ready once, then at the server's call for ever.

    enrol, if it must > lock the state > prepare the text > attend

The site dials out and listens on nothing. It runs the code that is installed with it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from discreet.client.app import make_client_app
from discreet.client.enrol import enrol
from discreet.client.link import Agent, AgentOptions
from discreet.client.link_worker import AgentEvent, AgentEventKind
from discreet.client.prepare import PreparedTexts, is_prepared, prepare
from discreet.client.runtime import SiteRuntime
from discreet.client.source import corpus_source
from discreet.common.errors import ConfigError, UnreachableError
from discreet.common.site import Site
from discreet.common.tls import SITE_CERTIFICATE, ClientTls, load_client_tls
from discreet.deploy.endpoint import check_plain, enrol_address
from discreet.deploy.progress import Progress

_log = logging.getLogger(__name__)

ENROL_SECONDS = 60
"""How long a client tries to reach the server that it is to enrol at."""

_PAUSE_SECONDS = 1.0

_WORDS = {
    AgentEventKind.SENT: "answered",
    AgentEventKind.LATE: "too late: the server does not use the answer",
    AgentEventKind.FAILED: "failed here: nothing was sent",
}
_AFTER_AN_ANSWER = {AgentEventKind.SENT, AgentEventKind.LATE, AgentEventKind.DISCONNECTED}


@dataclass(frozen=True, slots=True)
class AttendOptions:
    """What a site's operator may choose beside SITE.yaml.

    Attributes:
        once: End after one run instead of waiting for the next.
        is_insecure: Without TLS also past this machine.
        token: A join token, used if the site has no certificate yet.
    """

    once: bool = False
    is_insecure: bool = False
    token: str | None = None


def attend(site: Site, *, options: AttendOptions, progress: Progress) -> None:
    """Make the site's text ready, then answer the server until told to stop.

    Args:
        site: The site's settings, with `server`.
        options: See `AttendOptions`.
        progress: Told how far scrubbing is.

    Raises:
        ConfigError: If a setting that a client needs is missing or not fit.
        DataError: If the text or a certificate is not what it must be.
    """
    if site.server is None:
        raise ConfigError(
            "server: is required by `discreet client`, as HOST:PORT: add it to SITE.yaml"
        )
    tls = _tls(site, site.server, options)
    with ExitStack() as stack:
        stack.enter_context(_locked(site.state_dir))
        prepared = _prepare(site, progress)
        runtime = SiteRuntime(site, lambda: prepared)
        stack.callback(runtime.close)
        agent = _agent(site, runtime, tls, options)
        stack.enter_context(_stop_on_signal(agent.stop))
        agent.run()


def _agent(
    site: Site, runtime: SiteRuntime, tls: ClientTls | None, options: AttendOptions
) -> Agent:
    is_over = threading.Event()

    def over(run: str, is_finished: bool) -> None:
        _log.info("run %s is over%s", run, "" if is_finished else ", before its last round")
        if options.once:
            is_over.set()

    def on_event(event: AgentEvent) -> None:
        _tell(event)
        # Only now, because the server waits for the answer to what it has told.
        if is_over.is_set() and event.kind in _AFTER_AN_ANSWER:
            agent.stop()

    agent = Agent(
        AgentOptions(
            server=str(site.server),
            name=site.name,
            tls=tls,
            app=make_client_app(lambda context: runtime, over),
            on_event=on_event,
            insecure=options.is_insecure,
        )
    )
    return agent


def _tell(event: AgentEvent) -> None:
    """One line for a round that was answered; the group of a task is its round."""
    if event.text.isdigit() and event.kind in _WORDS:
        _log.info("round %s: %s", event.text, _WORDS[event.kind])


def _tls(site: Site, server: str, options: AttendOptions) -> ClientTls | None:
    if site.certs is None:
        if options.token is not None:
            raise ConfigError("certs: is required with --token: name a folder in SITE.yaml")
        warning = check_plain(server, is_insecure=options.is_insecure, setting="server")
        _log.warning("%s", warning)
        return None
    if options.token is not None and not (site.certs / SITE_CERTIFICATE).exists():
        where = enrol_address(server)
        path = _enrol(site.certs, site.name, where, options.token)
        _log.info("enrolled at %s: %s", where, path)
    return load_client_tls(site.certs, site.name)


def _enrol(folder: Path, name: str, where: str, token: str) -> Path:
    """Enrol, and give a server that was started at the same time the time to come up."""
    until = time.monotonic() + ENROL_SECONDS
    is_told = False
    while True:
        try:
            return enrol(folder, name, server=where, token=token)
        except UnreachableError:
            if time.monotonic() >= until:
                raise
        if not is_told:
            _log.info("no server answers at %s yet: trying for %d s", where, ENROL_SECONDS)
            is_told = True
        time.sleep(_PAUSE_SECONDS)


def _prepare(site: Site, progress: Progress) -> PreparedTexts:
    source = corpus_source(site.data)
    if is_prepared(site, source):
        return prepare(site, source)
    done = 0

    def advance_to(num: int) -> None:
        nonlocal done
        progress.advance(num - done)
        done = num

    # Read once more than needed: an operator with a million texts wants to know how long it takes.
    progress.start("scrubbing", sum(1 for _ in source.read()))
    try:
        return prepare(site, source, on_progress=advance_to)
    finally:
        progress.finish()


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """One client for one state folder; a client that is killed leaves no lock behind."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(state_dir / "client.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(
            f"state_dir: {state_dir} is in use by another client: stop that one, or give this "
            "site a folder of its own"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C stop in good order; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.set()
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
