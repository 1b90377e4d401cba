"""`make bench`: every benchmark in one run, as a table and as bench.json."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import aggregation
import link
import orjson
import rooms
import simulation
from measure import Figure
from rich.console import Console
from rich.table import Table

AREAS = {
    "simulation": simulation.figures,
    "aggregation": aggregation.figures,
    "rooms": rooms.figures,
    "link": link.figures,
}


def main(wanted: list[str]) -> None:
    """Run the areas named, or all of them.

    Args:
        wanted: Names of areas.
    """
    found: list[Figure] = []
    for area in wanted or list(AREAS):
        for measured in _shown(AREAS[area]()):
            found.append(measured)
    content = {f.name: {k: v for k, v in asdict(f).items() if k != "name"} for f in found}
    Path("bench.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    # Names must stay whole, also in a pipe.
    Console(width=160).print(_table(found))


def _shown(figures: Iterator[Figure]) -> Iterator[Figure]:
    for measured in figures:
        print(f"{measured.name}: {measured.value:.4g} {measured.unit}", file=sys.stderr)
        yield measured


def _table(figures: list[Figure]) -> Table:
    table = Table("figure", "value", "unit", "reference", "ratio", "aim")
    for f in figures:
        shown = ["" if x is None else f"{x:.3g}" for x in (f.value, f.reference, f.ratio)]
        table.add_row(f.name, shown[0], f.unit, shown[1], shown[2], f.aim)
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
