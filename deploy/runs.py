"""Run folders: where a run is written, and the plan that lies in it.

The plan is written before anything else, so that a run stopped at any moment can be resumed
from its folder alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from discreet.common.config import dump_plan, load_plan
from discreet.common.errors import ConfigError, DataError
from discreet.common.plan import Plan

PLAN_FILE = "plan.yaml"
"""The plan's name in a run folder."""


def embedded_plan() -> Path:
    """The plan that runs without arguments: the SMS Spam Collection over 10 sites."""
    return Path(__file__).parent / "examples" / "sms_spam.yaml"


def begin_run(
    run_file: Path | None, out_dir: Path | None, overrides: Sequence[str] = ()
) -> tuple[Path, Plan]:
    """A new run folder with the plan in it.

    Args:
        run_file: The plan; none takes the embedded one.
        out_dir: The folder, which must be new or empty; none makes one under `runs/`.
        overrides: Settings that replace the file's, as `training.rounds=3`.

    Returns:
        The folder and the plan.

    Raises:
        ConfigError: If the plan or the folder is not fit for a run.
    """
    plan = load_plan(run_file or embedded_plan(), overrides)
    if plan.simulation is None:
        raise ConfigError(
            f"{run_file}: simulation: is required to simulate: add where the text is (`data`)"
        )
    return new_run_dir(plan, out_dir), plan


def new_run_dir(plan: Plan, out_dir: Path | None) -> Path:
    """A new run folder with a plan in it.

    Args:
        plan: The plan.
        out_dir: The folder, which must be new or empty; none makes one under `runs/`.

    Raises:
        ConfigError: If the folder is not fit for a run.
    """
    run_dir = out_dir or _fresh_dir(plan.name)
    _make_empty(run_dir)
    _write_atomically(run_dir / PLAN_FILE, dump_plan(plan))
    return run_dir


def read_run(run_dir: Path) -> Plan:
    """The plan of a run folder.

    Raises:
        DataError: If it is no run folder.
    """
    path = run_dir / PLAN_FILE
    if not path.is_file():
        raise DataError(f"{run_dir}: must be the folder of a run, got none with a {PLAN_FILE}")
    return load_plan(path)


def _fresh_dir(name: str) -> Path:
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    base = Path("runs") / f"{slug[:80]}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 1000)))
    return next(path for path in candidates if not path.exists())


def _make_empty(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        is_empty = not any(run_dir.iterdir())
    except OSError as error:
        raise ConfigError(
            f"--out {run_dir}: must be a folder to write in, got {error.strerror}: name another"
        ) from None
    if not is_empty:
        raise ConfigError(
            f"--out {run_dir}: must be new or empty, got a folder with files: name another, "
            f"or go on with --resume {run_dir}"
        )


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
