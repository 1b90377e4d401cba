"""A federation to try on one machine: one folder for each site, as its operator would have it.

    DIR/run.yaml               the plan, for the server
    DIR/site-0000/site.yaml    a site's own settings
    DIR/site-0000/texts.jsonl  its text

The sites, their settings and their text are those that `discreet simulate` would make.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from discreet.common.config import dump_plan
from discreet.common.corpus import RawText
from discreet.common.errors import ConfigError
from discreet.common.plan import Plan
from discreet.common.site import CorpusConfig, Site
from discreet.common.yaml_loader import dump_yaml
from discreet.deploy.sites import SimulatedSites


def deal_out(plan: Plan, folder: Path, *, server: str, num_sites: int | None = None) -> list[Path]:
    """Deal the corpus of a plan's `simulation` out to folders.

    Args:
        plan: The plan.
        folder: Where to; new or empty.
        server: HOST:PORT of the server, written into each site's settings.
        num_sites: Replaces the plan's.

    The plan that is written waits for all of its sites.

    Returns:
        The SITE.yaml of each site.

    Raises:
        ConfigError: If the plan has no `simulation`, or the folder holds files.
        DataError: If the corpus cannot be read.
    """
    if plan.simulation is None:
        raise ConfigError("simulation: is required to deal out text: add where it is (`data`)")
    if num_sites is not None:
        simulation = plan.simulation.model_copy(update={"num_sites": num_sites})
        plan = plan.model_copy(update={"simulation": simulation})
    _make_empty(folder)
    sites = SimulatedSites(plan, folder)
    paths = []
    for number, site in enumerate(sites.sites):
        own = folder / site.name
        own.mkdir(mode=0o700)
        _write_texts(own / "texts.jsonl", list(sites.source(number).read()))
        paths.append(_write_site(own, site, server))
    (folder / "run.yaml").write_text(dump_plan(_waiting_for(len(paths), plan)), encoding="utf-8")
    return paths


def _waiting_for(num_sites: int, plan: Plan) -> Plan:
    """The plan with all its sites as the quorum: without them the run is another one."""
    quorum = min(num_sites, plan.federation.cohort_size or num_sites)
    federation = plan.federation.model_copy(update={"min_sites": quorum})
    return plan.model_copy(update={"federation": federation})


def _write_texts(path: Path, rows: list[RawText]) -> None:
    path.touch(mode=0o600)
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps({"text": row.text, "label": row.label}) + b"\n")


def _write_site(folder: Path, site: Site, server: str) -> Path:
    content = site.model_copy(
        update={"data": CorpusConfig(path="texts.jsonl"), "server": server}
    ).model_dump(mode="json")
    # Relative, so that the folder can be carried to the machine of the site.
    content |= {"state_dir": "state", "certs": "certs"}
    path = folder / "site.yaml"
    path.write_text(dump_yaml(content), encoding="utf-8")
    return path


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{folder}: must be a folder to write in, got {error.strerror}: name another"
        ) from None
    if not is_empty:
        raise ConfigError(f"{folder}: must be new or empty, got a folder with files: name another")
