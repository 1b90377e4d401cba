"""The command line. Thin: a command reads its options, calls one function and prints.

Heavy libraries are imported inside the commands, so that `discreet --help` answers at once.
Exit codes: 0 done, 1 a bug (with its traceback), 2 the input is wrong, 3 refused by policy or
budget, 4 the other side is unreachable, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from discreet.common.errors import DiscreetError
from discreet.deploy.certs_cli import certs
from discreet.deploy.federation_cli import client, deal, server, status

if TYPE_CHECKING:
    from discreet.common.plan import Plan
    from discreet.deploy.progress import Progress, Style

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 plus the number of the signal, as shells count."""


class _Group(click.Group):
    """Turns this program's errors into lines and exit codes; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            result: object = super().invoke(ctx)
        except DiscreetError as error:
            _print_error(str(error))
            raise click.exceptions.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _print_error(str(error) or "stopped")
            raise click.exceptions.Exit(INTERRUPTED) from error
        return result


def _print_error(message: str) -> None:
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="discreet", message="%(package)s %(version)s")
def cli() -> None:
    """Train one text model over private texts that stay where they are."""


@cli.command()
@click.argument("run_file", metavar="[RUN.yaml]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out",
    "out_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run folder. Default: runs/NAME-DATE-TIME.",
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
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN_DIR",
    help="Go on with a run that was stopped.",
)
@click.option(
    "--state",
    "state_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the simulated sites keep ledgers and scrubbed text. Default: in the run folder.",
)
@click.option("--quiet", "style", flag_value="quiet", help="Print the report's path and errors.")
@click.option("--json", "style", flag_value="json", help="Print one JSON object a line.")
def simulate(  # noqa: PLR0913 - one parameter for each option
    *,
    run_file: Path | None,
    out_dir: Path | None,
    overrides: tuple[str, ...],
    resume_dir: Path | None,
    state_dir: Path | None,
    style: Style | None,
) -> None:
    """Run a whole federation on this machine: the embedded demo, or any plan."""
    from discreet.deploy.runs import begin_run, read_run

    if resume_dir is None:
        run_dir, plan = begin_run(run_file, out_dir, overrides)
    elif run_file or out_dir or overrides:
        raise click.UsageError("--resume takes the plan from the run folder: give nothing else.")
    else:
        run_dir, plan = resume_dir, read_run(resume_dir)
    try:
        resume = resume_dir is not None
        _simulate(plan, run_dir, state_dir, style=style or "bar", resume=resume)
    except KeyboardInterrupt:
        words = ["discreet", "simulate", "--resume", str(run_dir)]
        words += ["--state", str(state_dir)] if state_dir else []
        raise KeyboardInterrupt(f"stopped: `{shlex.join(words)}` goes on") from None


def _simulate(
    plan: Plan, run_dir: Path, state_dir: Path | None, *, style: Style, resume: bool
) -> None:
    from discreet.deploy.progress import make_progress

    if not plan.is_private:
        click.echo("warning: privacy: none: the model may give away any text it saw", err=True)
    progress: Progress = make_progress(style, is_private=plan.is_private)
    try:
        from discreet.deploy.simulate import SimulateOptions, simulate

        options = SimulateOptions(state_dir=state_dir, resume=resume)
        summary = simulate(plan, run_dir, options=options, progress=progress)
    finally:
        progress.finish()  # Gives the terminal its cursor back, also after an error.
    progress.done(summary, run_dir / "report.html")


@cli.command()
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.argument("text_file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--text-field",
    default="text",
    show_default=True,
    help="Field of a .jsonl file that holds the text.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def predict(run_dir: Path, text_file: Path | None, text_field: str, as_json: bool) -> None:
    """Label texts with a finished model: one text a line, from FILE or standard input.

    Prints the label and its probability with a tab between, one line for each text.
    """
    from discreet.deploy.labelling import label_texts, read_texts

    for line in label_texts(run_dir, read_texts(text_file, text_field), as_json=as_json):
        click.echo(line)


@cli.command()
@click.argument("kind", type=click.Choice(["run", "site"]), default="run")
def schema(kind: Literal["run", "site"]) -> None:
    """Print the JSON schema of RUN.yaml or SITE.yaml, for editors."""
    from discreet.deploy.schema import settings_schema

    click.echo(settings_schema(kind))


for command in (server, client, status, deal, certs):
    cli.add_command(command)


def main() -> None:
    """The `discreet` command."""
    cli.main(prog_name="discreet")


if __name__ == "__main__":
    main()
