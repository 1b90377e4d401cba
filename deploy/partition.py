"""Deal one corpus out to simulated sites.

Sites are called `site-0000`, `site-0001`, ...: never by an author, whose name is private.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from discreet.common.corpus import RawText
from discreet.common.errors import ConfigError
from discreet.common.plan import PartitionConfig

MIN_ROWS = 2
"""An author with fewer rows makes no site of its own."""


def site_name(number: int) -> str:
    """The name of a simulated site, from its number."""
    return f"site-{number:04d}"


def deal(
    rows: Sequence[RawText], config: PartitionConfig, num_sites: int | None
) -> list[list[RawText]]:
    """The rows of each site, each row at one site; the same for the same seed.

    Args:
        rows: The corpus.
        config: How to deal.
        num_sites: Number of sites; with `kind: field`, the largest authors that become
            sites, or all that have `MIN_ROWS` rows where it is none.

    Raises:
        ConfigError: If `num_sites` is missing, or there is nobody to make a site of.
    """
    if config.kind == "field":
        return _by_owner(rows, num_sites)
    if num_sites is None:
        raise ConfigError("simulation.num_sites: must be a whole number >= 1, got none")
    generator = np.random.default_rng(config.seed)
    if config.kind == "iid":
        order = generator.permutation(len(rows))
        return [[rows[i] for i in sorted(order[site::num_sites])] for site in range(num_sites)]
    return _dirichlet(rows, config.alpha, num_sites, generator)


def _by_owner(rows: Sequence[RawText], num_sites: int | None) -> list[list[RawText]]:
    owned: dict[str, list[RawText]] = defaultdict(list)
    for row in rows:
        if row.owner is not None:
            owned[row.owner].append(row)
    # Largest first, ties by first appearance: numbers must not change with the hash seed.
    groups = sorted(owned.values(), key=lambda group: (-len(group), group[0].row))
    groups = [group for group in groups if len(group) >= MIN_ROWS][:num_sites]
    if not groups:
        raise ConfigError(
            "simulation.partition.field: must name a field by which at least one site has "
            f"{MIN_ROWS} rows: name another field, or use kind: iid"
        )
    return groups


def _dirichlet(
    rows: Sequence[RawText], alpha: float, num_sites: int, generator: np.random.Generator
) -> list[list[RawText]]:
    """Each label's rows are shared out by one draw of Dirichlet(alpha).

    Source:
        Hsu, Qi and Brown (2019), https://arxiv.org/abs/1909.06335, section 3.
    """
    labelled: dict[str | None, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        labelled[row.label].append(i)
    sites: list[list[int]] = [[] for _ in range(num_sites)]
    for label in sorted(labelled, key=str):
        order = generator.permutation(labelled[label])
        shares = generator.dirichlet(np.full(num_sites, alpha))
        borders = np.round(np.cumsum(shares) * len(order)).astype(int)[:-1]
        for site, part in zip(sites, np.split(order, borders), strict=True):
            site.extend(part.tolist())
    return [[rows[i] for i in sorted(site)] for site in sites]
