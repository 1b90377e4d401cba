"""The pictures of the report: SVG text to stand inside a page, light or dark.

Lines and letters take the page's own colour (`currentColor`), so one picture fits both. The
figures are made without pyplot: it keeps global state and looks for a screen.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

from discreet.server.history import RoundRecord, SiteSummary

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#3b82c4", "#d97b29", "#3d9970", "#8a8f98"
"""Middle tones that can be read on white and on near-black."""

_SITE_COLOURS = (BLUE, GREEN, "#9a6dd7", "#c4568c", "#8c7a3d", "#4aa5b5", GREY)

MAX_LINES = 12
"""With more sites than this, their range is drawn in place of a line each."""

# Stands for the page's own colour until the SVG is text; no chart uses it otherwise.
_INK = "#010203"
_WIDTH_INCHES, _HEIGHT_INCHES = 6.4, 2.7


def scores_plot(rounds: Sequence[RoundRecord]) -> str | None:
    """Accuracy and loss on the public split after each round; None if not measured."""
    measured = [(r.round, r.accuracy, r.loss) for r in rounds if r.accuracy is not None]
    if not measured:
        return None
    figure, axes = _figure("round", "accuracy")
    numbers = [number for number, _, _ in measured]
    marker = _marker(len(numbers))
    axes.plot(numbers, [a for _, a, _ in measured], color=BLUE, marker=marker, label="accuracy")
    losses = [(number, loss) for number, _, loss in measured if loss is not None]
    lines = list(axes.lines)
    if losses:
        right = axes.twinx()
        _style(right)
        right.set_ylabel("loss (nats)")
        right.plot(*zip(*losses, strict=True), color=ORANGE, marker=marker, ls="--", label="loss")
        right.set_ylim(bottom=0)
        lines += right.lines
    _legend(axes, lines)
    return _svg(figure, "accuracy and loss on the public test split, by round")


def epsilon_plot(sites: Sequence[SiteSummary], unit: str) -> str | None:
    """Epsilon of each site after each round, and the ceilings; None without privacy.

    Args:
        sites: All sites.
        unit: What epsilon is counted for; said wherever epsilon is.
    """
    series = [site.epsilon_by_round for site in sites if site.epsilon_by_round]
    if not series:
        return None
    figure, axes = _figure("round", f"epsilon per {unit}")
    # Sites with the same history are one line: most often all of them are.
    different = sorted(set(series), key=lambda values: values[-1])
    numbers = range(1, len(different[0]) + 1)
    marker = _marker(len(numbers))
    if len(different) > MAX_LINES:
        low = [min(values) for values in zip(*different, strict=True)]
        high = [max(values) for values in zip(*different, strict=True)]
        axes.fill_between(numbers, low, high, color=BLUE, alpha=0.3, label="sites, from to")
        axes.plot(numbers, high, color=BLUE, marker=marker)
    else:
        for colour, values in zip(cycle(_SITE_COLOURS), different, strict=False):
            label = _site_label([s.name for s in sites if s.epsilon_by_round == values])
            axes.plot(numbers, values, color=colour, marker=marker, label=label)
    ceilings = sorted({site.ceiling for site in sites if site.ceiling is not None})
    # A deployed server knows no ceiling: they are the sites' own.
    for ceiling in dict.fromkeys(ceilings[:1] + ceilings[-1:]):
        axes.axhline(ceiling, color=ORANGE, ls="--", label=f"ceiling {ceiling:g}")
    axes.set_ylim(bottom=0)
    _legend(axes, axes.get_legend_handles_labels()[0])
    return _svg(figure, "epsilon spent by each site, by round, with the ceilings")


def bytes_plot(rounds: Sequence[RoundRecord]) -> str | None:
    """Megabytes received and sent in each round; None without rounds."""
    if not rounds:
        return None
    figure, axes = _figure("round", "MB")
    numbers = [record.round for record in rounds]
    marker = _marker(len(numbers))
    down = [record.bytes_down / 1e6 for record in rounds]
    up = [record.bytes_up / 1e6 for record in rounds]
    axes.plot(numbers, down, color=BLUE, marker=marker, label="to the sites")
    axes.plot(numbers, up, color=GREEN, marker=marker, ls="--", label="from the sites")
    axes.set_ylim(bottom=0)
    _legend(axes, axes.get_legend_handles_labels()[0])
    return _svg(figure, "bytes sent and received, by round")


def entities_plot(entities: Sequence[tuple[str, int]]) -> str | None:
    """Number of entities found, by kind, the most frequent on top; None if there are none."""
    if not entities:
        return None
    ordered = sorted(entities, key=lambda pair: pair[1])
    figure, axes = _figure("found", "", height=0.8 + 0.28 * len(ordered))
    bars = axes.barh([_plain(kind) for kind, _ in ordered], [n for _, n in ordered], color=BLUE)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, color=_INK, fontsize=8)
    axes.grid(visible=False)
    axes.margins(x=0.12)
    return _svg(figure, "personal data found by scrubbing, by kind")


def _legend(axes: Axes, entries: Sequence[Artist]) -> None:
    """Above the picture, where no line runs through it."""
    axes.legend(
        entries,
        [str(entry.get_label()) for entry in entries],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
    )


def _figure(x_label: str, y_label: str, *, height: float = _HEIGHT_INCHES) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    # Rounds and counts are whole numbers.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _style(axes: Axes) -> None:
    axes.tick_params(colors=_INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(GREY)


def _marker(num_points: int) -> str:
    """Points are marked while they can be told apart; a single one would be invisible else."""
    return "o" if num_points <= 12 else ""


def _site_label(names: Sequence[str]) -> str:
    return f"site {_plain(names[0])}" if len(names) == 1 else f"{len(names)} sites"


def _plain(text: str) -> str:
    """A name as it is: between dollar signs Matplotlib reads formulas."""
    return text.replace("$", r"\$")


def _svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element: no fonts, no links, text as text."""
    import matplotlib as mpl

    buffer = io.StringIO()
    # A fixed salt makes the ids, and so the file, the same for the same figure.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), catch_warnings():
        # The page's fonts draw the letters; what Matplotlib's own lacks does not matter.
        simplefilter("ignore", UserWarning)
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Type": None, "Format": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # The page decides how wide it is; the view box keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
