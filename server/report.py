"""The report of a run: `report.json` for programs, `report.html` for people.

The page stands alone: no script, no font, no picture and no style is fetched from anywhere,
so it can be mailed to a data-protection officer and opened without a network.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from discreet.server.checkpoint import put_in_place
from discreet.server.guarantee import rounded_up
from discreet.server.history import RunSummary, ScrubSummary, to_json
from discreet.server.plots import bytes_plot, entities_plot, epsilon_plot, scores_plot

MAX_ROWS = 1_000
"""Sites and rounds shown on the page; `report.json` has all of them."""


def write_report(run_dir: Path, summary: RunSummary) -> Path:
    """Write `report.json` and `report.html` into the run folder.

    Returns:
        The path of `report.html`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    _put(run_dir / "report.json", to_json(summary))
    html_path = run_dir / "report.html"
    _put(html_path, render_html(summary).encode())
    return html_path


def render_html(summary: RunSummary) -> str:
    """The page, from the summary alone."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["num"] = _number
    environment.filters["eps"] = _epsilon
    environment.filters["bytes"] = _size
    pictures = {
        "scores": scores_plot(summary.rounds),
        "epsilon": epsilon_plot(summary.sites, summary.guarantee.unit),
        "bytes": bytes_plot(summary.rounds),
        "entities": entities_plot(counted_entities(summary.scrub)),
    }
    # Matplotlib has escaped the names inside; the rest of a picture is our own.
    safe = {name: Markup(svg) for name, svg in pictures.items() if svg}  # noqa: S704
    return environment.get_template("report.html.j2").render(
        summary=summary,
        pictures=safe,
        entities=_in_order(summary.scrub),
        max_rows=MAX_ROWS,
        plan_json=orjson.dumps(summary.plan.content, option=orjson.OPT_INDENT_2).decode(),
        total_seconds=sum(record.seconds for record in summary.rounds),
        total_up=sum(record.bytes_up for record in summary.rounds),
        total_down=sum(record.bytes_down for record in summary.rounds),
    )


def counted_entities(scrub: ScrubSummary) -> list[tuple[str, int]]:
    """Kinds with a number, the most frequent first; hidden cells have none to draw."""
    counted = [(kind, n) for kind, n in scrub.entities.items() if isinstance(n, int)]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))


def _in_order(scrub: ScrubSummary) -> list[tuple[str, int | str]]:
    """All kinds: those with a number first, the most frequent on top."""
    hidden = [(kind, cell) for kind, cell in scrub.entities.items() if isinstance(cell, str)]
    return [*counted_entities(scrub), *hidden]


def _put(path: Path, data: bytes) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(data)
    put_in_place(aside, path)


def _number(value: float | str | None, digits: int = 4) -> str:
    """A number for people: few digits, thousands apart, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}"


def _epsilon(value: float | None) -> str:
    """Epsilon for people, rounded up."""
    return "–" if value is None else f"{rounded_up(value):.3f}"


def _size(num_bytes: float) -> str:
    """Bytes for people, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
