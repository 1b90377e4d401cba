"""What a run shows: each thing once, with the unit beside the epsilon, and no bar in a pipe."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from discreet.deploy import progress as module
from discreet.deploy.progress import (
    MAX_SITES_SHOWN,
    BarProgress,
    JsonProgress,
    LineProgress,
    Progress,
    QuietProgress,
    guarantee_line,
    make_progress,
    round_line,
    summary_lines,
)
from discreet.server.history import (
    Guarantee,
    PlanSummary,
    RoundRecord,
    RunSummary,
    ScrubSummary,
    SiteSummary,
)

ROUND = RoundRecord(
    round=3,
    sites_asked=10,
    sites=9,
    epsilon_max=4.2149,
    seconds=0.456,
    bytes_up=100,
    bytes_down=200,
    refused={"site-0001": "budget"},
    loss=0.1,
    accuracy=0.97126,
)

SITES = (
    SiteSummary("north", epsilon=4.0, ceiling=8.0, delta=1e-5, rounds=3),
    SiteSummary(
        "south",
        epsilon=8.0,
        ceiling=8.0,
        delta=1e-5,
        rounds=2,
        refused="budget",
        refused_round=3,
    ),
)

SUMMARY = RunSummary(
    run="1",
    plan=PlanSummary(fingerprint="0" * 64, content={}),
    guarantee=Guarantee(
        unit="example",
        relation="add or remove one",
        epsilon=8.0,
        delta=1e-5,
        planned_epsilon=8.0,
        statement="All of it.",
        not_protected=(),
    ),
    sites=SITES,
    rounds=(ROUND,) * 3,
    final={"accuracy": 0.97126, "f1": 0.93},
    scrub=ScrubSummary(),
    versions={},
    is_finished=True,
)

OPEN = replace(
    SUMMARY,
    guarantee=replace(SUMMARY.guarantee, unit="none", epsilon=None, delta=None),
    sites=(SiteSummary("north", epsilon=None, ceiling=None, delta=None, rounds=3),),
)

REPORT = Path("runs/x/report.html")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def walk(progress: Progress, summary: RunSummary = SUMMARY) -> None:
    """A run of two phases as `simulate` tells it."""
    progress.start("scrubbing", 1000)
    progress.advance(400)
    progress.advance(600)
    progress.finish()
    progress.start("training", 3)
    for number in (1, 2, 3):
        progress.round_done(replace(ROUND, round=number), 3)
        progress.advance()
    progress.finish()
    progress.done(summary, REPORT)


def test_a_round_is_one_line_with_the_unit_beside_the_epsilon() -> None:
    line = round_line(ROUND, 30, is_private=True)

    assert line == (
        "round  3/30  sites 9/10  accuracy 0.9713  epsilon 4.22 (unit example)  0.46 s  "
        "1 refused, 0 failed"
    )


def test_a_round_without_measurement_or_privacy_says_so() -> None:
    line = round_line(
        replace(ROUND, accuracy=None, epsilon_max=None, refused={}), 3, is_private=False
    )

    assert line == "round 3/3  sites 9/10  accuracy not measured  no privacy  0.46 s"


def test_an_epsilon_that_is_not_known_is_not_made_up() -> None:
    assert "epsilon unknown" in round_line(replace(ROUND, epsilon_max=None), 3, is_private=True)


def test_the_end_names_sites_metrics_guarantee_and_report() -> None:
    assert summary_lines(SUMMARY, REPORT) == [
        "",
        "site   epsilon of ceiling  rounds  stopped",
        "south  8.00 of 8.00        2       budget in round 3",
        "north  4.00 of 8.00        3",
        "",
        "finished after 3 rounds  accuracy 0.9713  f1 0.9300",
        "privacy  epsilon 8.00 at delta 1e-05, unit example, add or remove one; the report states "
        "it whole",
        "report   runs/x/report.html",
    ]


def test_the_end_of_a_run_without_privacy_says_so_where_epsilons_would_stand() -> None:
    lines = summary_lines(OPEN, REPORT)

    assert "north  no privacy          3" in lines
    assert guarantee_line(OPEN) in lines
    assert guarantee_line(OPEN).startswith("privacy  none: ")


def test_a_run_that_was_cut_short_says_so() -> None:
    lines = summary_lines(replace(SUMMARY, is_finished=False, final={}), REPORT)

    assert "not finished after 3 rounds  not measured" in lines


def test_a_thousand_sites_do_not_fill_the_screen_and_the_ones_that_stopped_are_seen() -> None:
    many = [replace(SITES[0], name=f"site-{n:04}", epsilon=float(n)) for n in range(1000)]

    lines = summary_lines(replace(SUMMARY, sites=(*many, SITES[1])), REPORT)

    assert len(lines) == MAX_SITES_SHOWN + 7
    assert lines[2].startswith("south")
    assert lines[3].startswith("site-0999")
    assert f"and {1001 - MAX_SITES_SHOWN} more: see the report" in lines


def test_a_pipe_gets_plain_lines_each_once() -> None:
    file = io.StringIO()

    walk(make_progress("bar", is_private=True, file=file))

    lines = file.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("round ")]) == 3
    assert len(set(lines) - {""}) == len([line for line in lines if line])
    assert lines[0] == "scrubbing (1,000)"
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", file.getvalue())


@pytest.mark.parametrize(
    ("file", "variable", "value"),
    [(io.StringIO(), "FORCE_COLOR", "1"), (_Terminal(), "TERM", "dumb")],
    ids=["forced colour", "dumb terminal"],
)
def test_what_cannot_move_its_cursor_gets_no_bar(
    monkeypatch: pytest.MonkeyPatch, file: io.StringIO, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    assert isinstance(make_progress("bar", is_private=True, file=file), LineProgress)


def test_long_lines_are_not_folded_in_a_pipe() -> None:
    file = io.StringIO()
    path = Path("runs") / ("x" * 300) / "report.html"

    make_progress("bar", is_private=True, file=file).done(SUMMARY, path)

    assert f"report   {path}" in file.getvalue().splitlines()


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = _Terminal()

    shown = make_progress("bar", is_private=True, file=file)
    walk(shown)

    assert isinstance(shown, BarProgress)
    text = file.getvalue()
    assert "training" in text
    assert "left" in text
    assert text.count("round 2/3") == 1
    assert text.count("report   runs/x/report.html") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is given back


def test_words_in_brackets_are_printed_as_they_are() -> None:
    file = io.StringIO()
    shown = BarProgress(
        Console(file=file, force_terminal=True, highlight=False, markup=False, emoji=False),
        is_private=True,
    )

    shown.done(SUMMARY, Path("runs/[bold]:smile:/report.html"))

    assert "runs/[bold]:smile:/report.html" in file.getvalue()


def test_a_bar_that_is_finished_twice_or_never_started_is_no_error() -> None:
    shown = BarProgress(Console(file=_Terminal(), force_terminal=True), is_private=True)

    shown.advance()
    shown.finish()
    shown.start("scrubbing", 0)
    shown.start("training", 1)
    shown.finish()
    shown.finish()


def test_quiet_shows_the_path_of_the_report_alone() -> None:
    file = io.StringIO()

    walk(make_progress("quiet", is_private=True, file=file))

    assert file.getvalue() == "runs/x/report.html\n"


def test_json_is_one_object_a_line() -> None:
    file = io.StringIO()

    walk(make_progress("json", is_private=True, file=file))

    events = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "start",
        "finish",
        "start",
        "round",
        "round",
        "round",
        "finish",
        "done",
    ]
    assert events[0] == {"event": "start", "phase": "scrubbing", "total": 1000}
    assert events[1] == {"event": "finish", "phase": "scrubbing", "done": 1000, "total": 1000}
    assert events[3]["total_rounds"] == 3
    assert events[3]["record"]["accuracy"] == 0.97126
    assert events[-1]["report"] == "runs/x/report.html"
    assert events[-1]["guarantee"]["unit"] == "example"
    assert events[-1]["final"] == {"accuracy": 0.97126, "f1": 0.93}
    assert events[-1]["sites"][1]["refused"] == "budget"


def test_json_tells_progress_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.2, 1.1, 1.5, 2.2])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    shown = JsonProgress(file)

    shown.start("scrubbing", 10)
    for _ in range(4):
        shown.advance()

    events = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [event.get("done") for event in events] == [None, 2, 4]


def test_json_outside_a_phase_tells_nothing() -> None:
    file = io.StringIO()
    shown = JsonProgress(file)

    shown.advance(5)
    shown.finish()

    assert file.getvalue() == ""


@pytest.mark.parametrize("style", ["bar", "quiet", "json"])
def test_every_style_takes_standard_output_by_default(
    style: module.Style, capsys: pytest.CaptureFixture[str]
) -> None:
    walk(make_progress(style, is_private=True))

    assert "runs/x/report.html" in capsys.readouterr().out


def test_lines_and_quiet_do_nothing_between_rounds() -> None:
    file = io.StringIO()

    for shown in (LineProgress(file, is_private=True), QuietProgress(file)):
        shown.advance(3)
        shown.finish()

    assert file.getvalue() == ""
