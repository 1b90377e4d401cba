"""The report of a deployed server, which sees no ledgers and so knows no ceilings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sample_run import plan_of, state_of, summary_of

from discreet.server.history import load_summary
from discreet.server.plots import epsilon_plot
from discreet.server.report import write_report
from discreet.server.summary import summarise


def test_a_private_run_has_a_page_without_budgets(tmp_path: Path) -> None:
    plan = plan_of()
    summary = summarise(plan, state_of(plan))

    write_report(tmp_path, summary)

    assert all(site.ceiling is None for site in load_summary(tmp_path).sites)
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_epsilon_is_drawn_with_the_ceilings_that_are_known() -> None:
    sites = summary_of().sites

    one = epsilon_plot([replace(site, ceiling=5.0) for site in sites], "example")
    none = epsilon_plot([replace(site, ceiling=None) for site in sites], "example")

    assert one is not None
    assert none is not None
    # Letters are drawn as shapes; the line of a ceiling is the one that is dashed.
    assert one.count("stroke-dasharray") > none.count("stroke-dasharray")
