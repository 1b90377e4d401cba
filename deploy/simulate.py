"""A whole federation in this process: the apps of a deployment, without its network.

    corpus > deal out > prepare every site > rounds > report

A site's ledger, keys and scrubbed text lie in its own folder, as in a deployment, so a run
that is stopped anywhere can be taken up again, and a second run does not scrub again.
"""

from __future__ import annotations

import resource
import secrets
import signal
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from flwr.app import Context, RecordDict

from discreet.client.app import make_client_app
from discreet.client.prepare import prepare
from discreet.client.runtime import LEDGER_FILE, SiteRuntime, load_tokenizer
from discreet.client.training import new_model
from discreet.common.errors import DataError, LedgerError, RefusalCode, RefusedError
from discreet.common.models import weights_of
from discreet.common.plan import Plan
from discreet.deploy.grid import LocalGrid
from discreet.deploy.progress import Progress
from discreet.deploy.sites import SimulatedSites
from discreet.privacy.ledger import Ledger
from discreet.privacy.mechanism import mechanism_of
from discreet.server.app import make_server_app
from discreet.server.checkpoint import Checkpoint, load_checkpoint
from discreet.server.evaluate import Evaluator, public_examples
from discreet.server.history import RoundRecord, RunSummary, ScrubSummary, SiteBudget
from discreet.server.loop import RunSetup
from discreet.server.predict import save_model
from discreet.server.report import write_report
from discreet.server.summary import summarise
from discreet.server.tensorboard import write_tensorboard


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What a person may choose beside the plan.

    Attributes:
        state_dir: Where the sites keep ledgers and scrubbed text; none takes the run folder.
        resume: Go on with the run that is in the run folder.
    """

    state_dir: Path | None = None
    resume: bool = False


def simulate(
    plan: Plan, run_dir: Path, *, options: SimulateOptions, progress: Progress
) -> RunSummary:
    """Run a plan's federation on this machine, into a run folder.

    Args:
        plan: The plan, with its `simulation` section.
        run_dir: The run folder; made if missing.
        options: See `SimulateOptions`.
        progress: Told how far the run is; `done` is left to the caller.

    Returns:
        What `report.json` holds.

    Raises:
        ConfigError: If the plan cannot be simulated.
        DataError: If text, folder or model file are not what they must be.
        LedgerError: If the run to go on with stands in no ledger of the state folder.
        RefusedError: If no site took part in any round; the report is written all the same.
        KeyboardInterrupt: After Ctrl-C, once what was under way is on disk.
    """
    state_dir = options.state_dir or run_dir / "sites"
    if plan.is_private:
        mechanism_of(plan)  # A plan that no noise can satisfy fails here, before any work.
    sites = SimulatedSites(plan, state_dir)
    resume = load_checkpoint(run_dir) if options.resume else None
    if options.resume and resume is None and not run_dir.is_dir():
        raise DataError(f"{run_dir}: there is no run to go on with: start one without --resume")
    if resume is not None:
        _check_ledgers_know(resume, sites)
    sites.prepare(progress)
    evaluator = _evaluator(plan, state_dir)
    with ExitStack() as stack:
        stack.enter_context(_shared_cores(sites.max_threads))
        runtimes = _Runtimes(sites)
        stack.callback(runtimes.close)
        stopped = stack.enter_context(_stop_on_interrupt())
        grid = LocalGrid(
            make_client_app(runtimes.of),
            [site.name for site in sites.sites],
            max_threads=sites.max_threads,
            should_stop=stopped.is_set,
        )
        setup = RunSetup(
            plan=plan,
            run=resume.run if resume else secrets.token_hex(8),
            run_dir=run_dir,
            start_weights=weights_of(new_model(plan, load_tokenizer(plan).vocabulary_size)),
            site_name=grid.names.__getitem__,
            evaluate=evaluator,
            on_round=_teller(plan, progress),
            should_stop=stopped.is_set,
            resume=resume,
        )
        state = _train(grid, setup, progress)
        summary = summarise(plan, state, budgets=runtimes.budgets(), scrub=_scrub_summary(sites))
    save_model(run_dir, plan, load_tokenizer(plan), state.weights)
    write_tensorboard(run_dir, summary)
    write_report(run_dir, summary)
    if stopped.is_set() and not summary.is_finished:
        raise KeyboardInterrupt
    _check_somebody_took_part(summary, run_dir)
    return summary


def _check_ledgers_know(resume: Checkpoint, sites: SimulatedSites) -> None:
    """Refuse a state folder whose ledgers lack what the run has cost: epsilon would restart."""
    folders = {site.name: site.state_dir for site in sites.sites}
    for record in resume.sites.values():
        path = folders[record.name] / LEDGER_FILE if record.name in folders else None
        known = 0
        if path is not None and path.exists():
            with Ledger.open(path, data_set=record.name) as ledger:
                known = ledger.num_rounds(resume.run)
        if known < record.rounds:
            raise LedgerError(
                f"{sites.state_dir}: must hold the ledgers that the run was started with, but "
                f"{record.name} took part in {record.rounds} rounds and its ledger has {known}: "
                "give the same --state as at the start"
            )


def _check_somebody_took_part(summary: RunSummary, run_dir: Path) -> None:
    if any(record.sites for record in summary.rounds):
        return
    codes = Counter(site.refused for site in summary.sites if site.refused)
    told = ", ".join(f"{num} refused: {code}" for code, num in codes.most_common())
    raise RefusedError(
        RefusalCode(codes.most_common(1)[0][0]) if codes else RefusalCode.INTERNAL,
        f"no site took part ({told or 'all failed'}), so the model is as it began; "
        f"{run_dir / 'report.html'} shows what each site allows and has spent",
    )


class _Runtimes:
    """The sites at work, each made when its first task comes."""

    def __init__(self, sites: SimulatedSites) -> None:
        self._sites = sites
        self._number = {site.name: number for number, site in enumerate(sites.sites)}
        self._made: dict[str, SiteRuntime] = {}
        self._open: OrderedDict[str, None] = OrderedDict()
        self._max_open = _max_open_ledgers()
        self._lock = threading.Lock()

    def of(self, context: Context) -> SiteRuntime:
        """The site that a Flower node stands for."""
        return self._get(str(context.node_config["site"]))

    def _get(self, name: str) -> SiteRuntime:
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make(name)
            self._open[name] = None
            self._open.move_to_end(name)
            if len(self._open) > self._max_open:
                # The one asked longest ago is not at work: far fewer are than may be open.
                self._made[self._open.popitem(last=False)[0]].close()
            return self._made[name]

    def _make(self, name: str) -> SiteRuntime:
        number = self._number[name]
        site, source = self._sites.sites[number], self._sites.source(number)
        return SiteRuntime(site, lambda: prepare(site, source))

    def budgets(self) -> dict[str, SiteBudget]:
        """What each site's own ledger says; here all of them are on one machine."""
        return {name: _budget(self._get(name)) for name in self._number}

    def close(self) -> None:
        """Close every ledger."""
        for runtime in self._made.values():
            runtime.close()


def _max_open_ledgers() -> int:
    """Ledgers to keep open, as many as the operating system allows: opening one costs 1 ms."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # SQLite holds three files for each; the rest of the program needs some hundred.
    return max(64, (hard - 512) // 3)


def _budget(runtime: SiteRuntime) -> SiteBudget:
    ceiling = runtime.ceiling
    return SiteBudget(runtime.ledger.epsilon(ceiling.delta), ceiling.epsilon, ceiling.delta)


def _train(grid: LocalGrid, setup: RunSetup, progress: Progress) -> Checkpoint:
    ended: list[Checkpoint] = []
    app = make_server_app(setup, ended.append)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    done = setup.resume.round if setup.resume else 0
    progress.start("training", setup.plan.training.rounds)
    progress.advance(done)
    try:
        app(grid, context)
    finally:
        progress.finish()
    return ended[0]


def _teller(plan: Plan, progress: Progress) -> Callable[[RoundRecord], None]:
    def tell(record: RoundRecord) -> None:
        progress.advance()
        progress.round_done(record, plan.training.rounds)

    return tell


def _evaluator(plan: Plan, state_dir: Path) -> Evaluator | None:
    if plan.evaluation is None:
        return None
    tokenizer = load_tokenizer(plan)
    examples = public_examples(
        plan.evaluation, plan.task.labels, tokenizer, cache_dir=state_dir / "public"
    )
    return Evaluator(plan, tokenizer, examples)


def _scrub_summary(sites: SimulatedSites) -> ScrubSummary:
    entities: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for number, site in enumerate(sites.sites):
        prepared = prepare(site, sites.source(number))
        entities.update(prepared.entities)
        counts.update(prepared.counts)
    return ScrubSummary(dict(entities), counts["rows"], counts["scrubbed"])


@contextmanager
def _shared_cores(max_threads: int | None) -> Iterator[None]:
    """Share the cores between sites, not within one: a small model is slower on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // max_threads) if max_threads else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts at once."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
