"""The server of a federation: the app of a simulation, behind the gRPC link.

    wait for sites > rounds > model and reports > tell the sites that the run is over

All that a run needs is in its folder after each step, so a server that is killed goes on with
`--resume`. A server sees no ledgers: what it reports of a site is what this run has cost it.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from discreet.client.runtime import load_tokenizer
from discreet.client.training import new_model
from discreet.common.models import weights_of
from discreet.common.plan import Plan
from discreet.common.tls import load_server_tls
from discreet.deploy.authority import CA_KEY, Authority
from discreet.deploy.endpoint import DEFAULT_BIND, check_plain, enrol_address
from discreet.deploy.progress import Progress
from discreet.deploy.status import Status, StatusFile
from discreet.privacy.mechanism import mechanism_of
from discreet.server.app import run_server_app, tell_over
from discreet.server.checkpoint import Checkpoint, load_checkpoint
from discreet.server.evaluate import Evaluator, public_examples
from discreet.server.history import RoundRecord, RunSummary
from discreet.server.link import LinkOptions, LinkServer
from discreet.server.loop import RunSetup
from discreet.server.metrics import ServerMetrics
from discreet.server.predict import save_model
from discreet.server.report import write_report
from discreet.server.summary import summarise
from discreet.server.tensorboard import write_tensorboard

_log = logging.getLogger(__name__)

_COME_BACK_SECONDS = 35.0
"""Within so long a client has dialled again: its pauses are at most 30 s."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What an operator may choose beside the plan.

    Attributes:
        bind: HOST:PORT to listen on.
        certs: Folder of the federation's authority; none goes without TLS.
        is_insecure: Without TLS also past this machine.
        metrics: HOST:PORT to serve Prometheus metrics on; none serves none.
        resume: Go on with the run that is in the run folder.
    """

    bind: str = DEFAULT_BIND
    certs: Path | None = None
    is_insecure: bool = False
    metrics: str | None = None
    resume: bool = False


def serve(plan: Plan, run_dir: Path, *, options: ServeOptions, progress: Progress) -> RunSummary:
    """Run a plan with the sites that come, into a run folder.

    Args:
        plan: The plan.
        run_dir: The run folder.
        options: See `ServeOptions`.
        progress: Told how far the run is; `done` is left to the caller.

    Returns:
        What `report.json` holds.

    Raises:
        ConfigError: If the plan or an address is not fit.
        DataError: If the run folder or a certificate is not what it must be.
        UnreachableError: If too few sites came in time; the run can be resumed.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; the run can be resumed.
    """
    resume = load_checkpoint(run_dir) if options.resume else None
    if plan.is_private:
        mechanism_of(plan)  # A plan that no noise can satisfy fails here, before any site comes.
    evaluator = _evaluator(plan, run_dir)
    with ExitStack() as stack:
        stack.enter_context(_interrupt_on_terminate())
        link = stack.enter_context(LinkServer(_link_options(plan, run_dir, options)))
        setup = _setup(plan, run_dir, resume)
        board = _Board(setup, link, options, progress)
        stack.enter_context(board.metrics)
        stack.enter_context(board.file)
        state = board.train(replace(setup, evaluate=evaluator))
        summary = _write_all(plan, run_dir, state)
        if resume is not None and resume.round == state.round:
            # Killed after its last round: the sites are still on their way back.
            willing = [site for site in state.sites.values() if site.refused is None]
            link.grid.wait_for_sites(len(willing), _COME_BACK_SECONDS)
        tell_over(link.grid, state, is_finished=summary.is_finished)
        board.finish()
    return summary


def _setup(plan: Plan, run_dir: Path, resume: Checkpoint | None) -> RunSetup:
    federation = plan.federation
    return RunSetup(
        plan=plan,
        run=resume.run if resume else secrets.token_hex(8),
        run_dir=run_dir,
        start_weights=weights_of(new_model(plan, load_tokenizer(plan).vocabulary_size)),
        timeout_seconds=federation.round_timeout_seconds,
        wait_seconds=federation.wait_seconds,
        resume=resume,
    )


class _Board:
    """All places where the run is shown: the screen, the status file, the metrics."""

    def __init__(
        self, setup: RunSetup, link: LinkServer, options: ServeOptions, progress: Progress
    ) -> None:
        self._setup = setup
        self._link = link
        self._progress = progress
        self._total = setup.plan.training.rounds
        self._num_told: int | None = None
        self.metrics = ServerMetrics(options.metrics, lambda: len(link.grid.get_node_ids()))
        self.file = StatusFile(setup.run_dir, self._first(options), self._attending)

    def train(self, setup: RunSetup) -> Checkpoint:
        """Run the rounds, and show them."""
        told = replace(
            setup,
            site_name=self._link.grid.site_name,
            on_round=self._round_done,
            on_wait=self._wait,
        )
        self._progress.start("training", self._total)
        self._progress.advance(setup.resume.round if setup.resume else 0)
        try:
            return run_server_app(self._link.grid, told)
        finally:
            self._progress.finish()

    def finish(self) -> None:
        """The run ended in good order."""
        self.file.set(replace(self.file.status, state="finished"))

    def _first(self, options: ServeOptions) -> Status:
        setup = self._setup
        return Status(
            name=setup.plan.name,
            run=setup.run,
            state="waiting",
            address=self._link.address,
            is_secure=options.certs is not None,
            round=setup.resume.round if setup.resume else 0,
            total_rounds=self._total,
            min_sites=setup.plan.federation.min_sites,
        )

    def _attending(self) -> tuple[str, ...]:
        grid = self._link.grid
        return tuple(sorted(grid.site_name(node) for node in grid.get_node_ids()))

    def _wait(self, num_sites: int) -> None:
        if num_sites != self._num_told:
            quorum = self._setup.plan.federation.min_sites
            _log.info("waiting for sites: %d of %d are there", num_sites, quorum)
            self.file.set(replace(self.file.status, state="waiting"))
            self._num_told = num_sites

    def _round_done(self, record: RoundRecord) -> None:
        self._num_told = None
        self._progress.advance()
        self._progress.round_done(record, self._total)
        self.metrics.observe(record)
        self.file.set(
            replace(
                self.file.status,
                state="training",
                round=record.round,
                updates=record.sites,
                accuracy=record.accuracy,
                epsilon_max=record.epsilon_max,
                refused=record.refused,
                failed=record.failed,
            )
        )


def _link_options(plan: Plan, run_dir: Path, options: ServeOptions) -> LinkOptions:
    # In order, the same replies give the same sum bit for bit; where some are not waited for,
    # the first to come must be the first to count.
    is_ordered = plan.federation.oversample == 1
    if options.certs is None:
        warning = check_plain(options.bind, is_insecure=options.is_insecure, setting="--bind")
        _log.warning("%s", warning)
        return LinkOptions(
            bind=options.bind,
            spool_dir=run_dir / "link",
            insecure=options.is_insecure,
            ordered=is_ordered,
        )
    tls, authority = load_server_tls(options.certs), Authority(options.certs)
    # Without the authority's key, sites are signed for elsewhere: nobody enrols here.
    can_sign = (options.certs / CA_KEY).is_file()
    return LinkOptions(
        bind=options.bind,
        spool_dir=run_dir / "link",
        tls=tls,
        ordered=is_ordered,
        site_allowed=authority.site_allowed,
        enrol=authority.enrol if can_sign else None,
        enrol_bind=enrol_address(options.bind) if can_sign else None,
    )


def _write_all(plan: Plan, run_dir: Path, state: Checkpoint) -> RunSummary:
    summary = summarise(plan, state)
    save_model(run_dir, plan, load_tokenizer(plan), state.weights)
    write_tensorboard(run_dir, summary)
    write_report(run_dir, summary)
    return summary


def _evaluator(plan: Plan, run_dir: Path) -> Evaluator | None:
    if plan.evaluation is None:
        return None
    tokenizer = load_tokenizer(plan)
    labels = plan.task.labels
    examples = public_examples(plan.evaluation, labels, tokenizer, cache_dir=run_dir / "public")
    return Evaluator(plan, tokenizer, examples)


@contextmanager
def _interrupt_on_terminate() -> Iterator[None]:
    """SIGTERM stops the server as Ctrl-C does: what is done is on disk already."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
