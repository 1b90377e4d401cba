"""The sites of a simulation: each with the settings, state folder and text of a real one.

The corpus is read and dealt out only if some site has still to be prepared. Raw text is
never written to a site's folder: what lies there is what a deployed site would keep.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import orjson

from discreet.client.prepare import is_prepared, prepare
from discreet.client.source import TextSource, corpus_fingerprint
from discreet.common.corpus import RawText, read_corpus
from discreet.common.errors import ConfigError, DataError
from discreet.common.plan import Plan, SimulationConfig, SiteOverride
from discreet.common.site import CorpusConfig, PolicyConfig, Site
from discreet.deploy.partition import deal, site_name
from discreet.deploy.progress import Progress
from discreet.privacy.scrub_pool import ScrubPool
from discreet.privacy.seal import write_private


class SimulatedSites:
    """The sites that a plan's `simulation` section describes.

    Args:
        plan: The plan.
        state_dir: Holds one folder a site, as deployed sites would have.

    Attributes:
        state_dir: As given.
        sites: The sites' settings.

    Raises:
        ConfigError: If the plan has no `simulation`, or names sites that there are not.
        DataError: If the corpus cannot be read or cannot be learned from.
    """

    def __init__(self, plan: Plan, state_dir: Path) -> None:
        if plan.simulation is None:
            raise ConfigError("simulation: is required by `discreet simulate`: say where text is")
        self._plan = plan
        self._config: SimulationConfig = plan.simulation
        self.state_dir = state_dir
        self._fingerprint = _fingerprint(self._corpus, self._config)
        self.sites = [self._site(site_name(number)) for number in range(self._count_sites())]
        if unknown := self._config.sites.keys() - {site.name for site in self.sites}:
            raise ConfigError(
                f"simulation.sites: must name sites from {site_name(0)} to "
                f"{self.sites[-1].name}, got {', '.join(sorted(unknown))}"
            )

    @property
    def max_threads(self) -> int | None:
        """Sites to train at the same time; none where that is to be found out."""
        return self._config.max_threads

    def source(self, number: int) -> TextSource:
        """The raw text of one site, by its number."""
        fingerprint = hashlib.sha256(f"{self._fingerprint}/{number}".encode()).hexdigest()
        return TextSource(fingerprint, lambda: iter(self._dealt[number]))

    def prepare(self, progress: Progress) -> None:
        """Clean and scrub what no earlier run has, at all sites, with one set of processes."""
        todo = [i for i, site in enumerate(self.sites) if not is_prepared(site, self.source(i))]
        if not todo:
            return
        progress.start("scrubbing", sum(len(self._dealt[i]) for i in todo))
        try:
            with ScrubPool(workers=self._config.scrub.workers) as pool:
                for i in todo:
                    self._prepare_one(i, pool, progress)
        finally:
            progress.finish()
        self.__dict__.pop("_dealt", None)

    def _prepare_one(self, number: int, pool: ScrubPool, progress: Progress) -> None:
        done = 0

        def advance_to(num: int) -> None:
            nonlocal done
            progress.advance(num - done)
            done = num

        prepare(self.sites[number], self.source(number), pool=pool, on_progress=advance_to)
        # Cleaning leaves texts out, which scrubbing then never reports.
        advance_to(len(self._dealt[number]))

    @property
    def _corpus(self) -> CorpusConfig:
        partition = self._config.partition
        if partition.field is None:
            return self._config.data
        return self._config.data.model_copy(update={"owner_field": partition.field})

    @functools.cached_property
    def _dealt(self) -> list[list[RawText]]:
        rows = list(read_corpus(self._corpus))
        _check_labels(rows, self._plan.task.labels)
        return deal(rows, self._config.partition, self._config.num_sites)

    def _count_sites(self) -> int:
        if self._config.partition.kind != "field" and self._config.num_sites is not None:
            return self._config.num_sites
        # Only the corpus can tell how many authors it has: remembered beside the sites.
        path = self.state_dir / "sites.json"
        known = orjson.loads(path.read_bytes()) if path.is_file() else {}
        if known.get("fingerprint") != self._fingerprint:
            known = {"fingerprint": self._fingerprint, "num_sites": len(self._dealt)}
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Whole or not at all: a run that is killed here must be one to go on with.
            write_private(path, orjson.dumps(known))
        return int(known["num_sites"])

    def _site(self, name: str) -> Site:
        config, override = self._config, self._config.sites.get(name, SiteOverride())
        return Site(
            name=name,
            data=config.data,
            clean=override.clean or config.clean,
            scrub=override.scrub or config.scrub,
            policy=override.policy or config.policy or _policy_of(self._plan),
            state_dir=self.state_dir / name,
        )


def _policy_of(plan: Plan) -> PolicyConfig:
    """The policy that allows this plan, once, and nothing more."""
    privacy = plan.privacy
    if privacy == "none":
        return PolicyConfig(epsilon=1.0, delta=1e-5, allow_without_privacy=True)
    return PolicyConfig(epsilon=privacy.epsilon, delta=privacy.delta)


def _check_labels(rows: list[RawText], labels: tuple[str, ...]) -> None:
    found = {row.label for row in rows}
    if len(found) < 2:
        raise DataError(
            "simulation.data: must hold texts of at least 2 different labels, got 1: there is "
            "nothing to tell apart"
        )
    if others := sum(row.label not in labels for row in rows):
        raise DataError(
            f"task.labels: must hold every label of simulation.data, got {len(labels)} labels, "
            f"and {others} of {len(rows)} rows have another or none: complete task.labels"
        )


def _fingerprint(corpus: CorpusConfig, config: SimulationConfig) -> str:
    dealt = f"{config.num_sites}/{config.partition.model_dump_json()}"
    return hashlib.sha256(f"{corpus_fingerprint(corpus)}/{dealt}".encode()).hexdigest()
