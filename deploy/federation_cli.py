"""`discreet server`, `client`, `status` and `deal`. Thin: see `serve`, `attend` and `status`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from discreet.common.plan import Plan
    from discreet.deploy.progress import Style
    from discreet.deploy.serve import ServeOptions

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_quiet_option = click.option(
    "--quiet", "style", flag_value="quiet", help="Print the report's path and errors."
)
_json_option = click.option(
    "--json", "style", flag_value="json", help="Print and log one JSON object a line."
)
_insecure_option = click.option(
    "--insecure", "is_insecure", is_flag=True, help="Go without TLS also past this machine."
)


@click.command()
@click.argument("run_file", metavar="RUN.yaml", required=False, type=_FILE)
@click.option(
    "--out", "out_dir", type=_FOLDER, help="The run folder. Default: runs/NAME-DATE-TIME."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a setting of the file: --set training.rounds=3. Repeatable.",
)
@click.option(
    "--resume",
    "resume_dir",
    type=_FOLDER,
    metavar="RUN_DIR",
    help="Go on with a run that was stopped or killed.",
)
@click.option(
    "--bind",
    default="127.0.0.1:7443",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; sites enrol at the port above.",
)
@click.option("--certs", type=_FOLDER, help="The folder of `discreet certs init`. Default: no TLS.")
@_insecure_option
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics, without TLS.")
@_quiet_option
@_json_option
def server(  # noqa: PLR0913 - one parameter for each option
    *,
    run_file: Path | None,
    out_dir: Path | None,
    overrides: tuple[str, ...],
    resume_dir: Path | None,
    bind: str,
    certs: Path | None,
    is_insecure: bool,
    metrics: str | None,
    style: Style | None,
) -> None:
    """Coordinate a federation: wait for the sites, run the plan's rounds, write the model."""
    from discreet.common.config import load_plan
    from discreet.common.logs import configure_logs
    from discreet.deploy.runs import new_run_dir, read_run
    from discreet.deploy.serve import ServeOptions

    configure_logs("json" if style == "json" else "text")
    if resume_dir is not None:
        if run_file or out_dir or overrides:
            raise click.UsageError("--resume takes the plan from the run folder: drop the others.")
        plan, run_dir = read_run(resume_dir), resume_dir
    elif run_file is None:
        raise click.UsageError("Name a RUN.yaml, or a run folder with --resume.")
    else:
        plan = load_plan(run_file, overrides)
        run_dir = new_run_dir(plan, out_dir)
    options = ServeOptions(
        bind=bind,
        certs=certs,
        is_insecure=is_insecure,
        metrics=metrics,
        resume=resume_dir is not None,
    )
    try:
        _serve(plan, run_dir, options, style=style or "bar")
    except KeyboardInterrupt:
        again = shlex.join(["discreet", "server", "--resume", str(run_dir), *_repeated(options)])
        raise KeyboardInterrupt(f"stopped: `{again}` goes on") from None


def _serve(plan: Plan, run_dir: Path, options: ServeOptions, *, style: Style) -> None:
    from discreet.deploy.progress import make_progress
    from discreet.deploy.serve import serve

    if not plan.is_private:
        click.echo("warning: privacy: none: the model may give away any text it saw", err=True)
    progress = make_progress(style, is_private=plan.is_private)
    try:
        summary = serve(plan, run_dir, options=options, progress=progress)
    finally:
        progress.finish()
    progress.done(summary, run_dir / "report.html")


def _repeated(options: ServeOptions) -> list[str]:
    words = ["--bind", options.bind]
    words += ["--certs", str(options.certs)] if options.certs else []
    words += ["--insecure"] if options.is_insecure else []
    return words + (["--metrics", options.metrics] if options.metrics else [])


@click.command()
@click.argument("site_file", metavar="SITE.yaml", type=_FILE)
@click.option("--once", is_flag=True, help="End after one run; else wait for the next.")
@click.option(
    "--token",
    "token_file",
    type=click.File("r"),
    metavar="FILE",
    help="Enrol first, if there is no certificate yet; - reads the join token from the input.",
)
@_insecure_option
@_json_option
def client(
    *,
    site_file: Path,
    once: bool,
    token_file: TextIO | None,
    is_insecure: bool,
    style: Style | None,
) -> None:
    """Take part as a site: scrub the text, then train at the server's call until stopped."""
    from discreet.common.config import load_site
    from discreet.common.logs import configure_logs
    from discreet.deploy.attend import AttendOptions, attend
    from discreet.deploy.progress import make_progress

    configure_logs("json" if style == "json" else "text")
    site = load_site(site_file)
    token = token_file.read() if token_file else None
    options = AttendOptions(once=once, is_insecure=is_insecure, token=token)
    # A client shows no epsilon on the way: its ledger is asked for that.
    attend(site, options=options, progress=make_progress(style or "bar", is_private=True))


@click.command()
@click.argument("run_dir", metavar="RUN_DIR", type=_FOLDER)
@click.option("--watch", is_flag=True, help="Show it anew each second until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, run_dir: Path, watch: bool, as_json: bool) -> None:
    """Show what the server of a run folder is doing."""
    import time

    from discreet.deploy.status import is_over, read_status, status_json, status_lines

    while True:
        now = read_status(run_dir)
        if watch and not as_json:
            click.clear()
        for line in [status_json(now)] if as_json else status_lines(now):
            click.echo(line)
        if not watch or is_over(now):
            return
        time.sleep(1.0)


@click.command()
@click.argument("run_file", metavar="[RUN.yaml]", required=False, type=_FILE)
@click.option("--out", "folder", type=_FOLDER, required=True, help="Where to; new or empty.")
@click.option("--sites", "num_sites", type=click.IntRange(1), help="Replaces the plan's number.")
@click.option(
    "--server",
    "address",
    default="127.0.0.1:7443",
    show_default=True,
    metavar="HOST:PORT",
    help="Where the server will listen; written into each SITE.yaml.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `simulate`.")
def deal(
    *,
    run_file: Path | None,
    folder: Path,
    num_sites: int | None,
    address: str,
    overrides: tuple[str, ...],
) -> None:
    """Deal a plan's corpus out to folders, one a site, to try a federation on one machine."""
    from discreet.common.config import load_plan
    from discreet.deploy.deal import deal_out
    from discreet.deploy.endpoint import split_address
    from discreet.deploy.runs import embedded_plan

    split_address(address)
    plan = load_plan(run_file or embedded_plan(), overrides)
    paths = deal_out(plan, folder, server=address, num_sites=num_sites)
    click.echo(f"plan     {folder / 'run.yaml'}")
    for path in paths:
        click.echo(f"site     {path}")
