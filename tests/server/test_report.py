"""The page: it stands alone, shows all of it, and lets no name become markup."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest
from sample_run import summary_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from discreet.server.history import ScrubSummary
from discreet.server.plots import bytes_plot, entities_plot, epsilon_plot, scores_plot
from discreet.server.report import counted_entities, render_html, write_report
from discreet.server.tensorboard import write_tensorboard


class _Page(HTMLParser):
    """Collects what a browser would fetch or run, and the text it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name.rpartition(":")[2] in ("src", "href", "srcset", "data", "action", "poster"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.mark.parametrize("is_private", [True, False])
def test_the_page_fetches_and_runs_nothing(is_private: bool) -> None:
    html = render_html(summary_of(is_private=is_private))
    page = _Page(html)

    assert all(link.startswith("#") for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base"}
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_names_do_not_become_markup() -> None:
    html = render_html(summary_of())

    assert "north <b>" not in html
    assert "north &lt;b&gt;" in html
    assert "A run &amp; its &lt;name&gt;" in html


def test_the_page_shows_the_guarantee_the_sites_the_finds_and_the_plan() -> None:
    summary = summary_of()

    text = " ".join(_Page(render_html(summary)).text.split())

    for paragraph in summary.guarantee.statement.split("\n\n"):
        assert paragraph in text
    for item in summary.guarantee.not_protected:
        assert item in text
    for part in (
        "5.500",
        "budget, round 3",
        "PHONE_NUMBER 12",
        "IP_ADDRESS <5",
        "10.8 kB to the sites, 10.4 kB from them",
        summary.plan.fingerprint,
        '"sample_rate": 0.1',
        summary.versions["torch"],
    ):
        assert part in text


def test_wherever_the_page_shows_epsilon_it_shows_the_unit() -> None:
    html = render_html(summary_of())

    heads = re.findall(r"<th[^>]*>([^<]*epsilon[^<]*)</th>", html)
    assert len(heads) == 2
    assert all("per example" in head for head in heads)
    assert ">epsilon per example<" in html[html.index("<svg") :]


def test_a_run_without_privacy_says_so_loudly_and_shows_no_epsilon() -> None:
    html = render_html(summary_of(is_private=False))

    assert "No privacy." in html
    assert "NO PRIVACY GUARANTEE" in html
    assert "ε" not in html
    assert "<th" not in re.findall(r".{60}epsilon.{20}", html)


def test_a_run_that_was_not_measured_or_scrubbed_says_so() -> None:
    bare = tuple(
        replace(r, loss=None, accuracy=None, precision=None, recall=None, f1=None, classes=())
        for r in summary_of().rounds
    )

    html = render_html(
        replace(summary_of(), rounds=bare, classes=(), final={}, scrub=ScrubSummary())
    )

    assert "Not measured" in html
    assert "No counts" in html


def test_a_stopped_run_before_its_first_round_has_a_page() -> None:
    html = render_html(
        replace(summary_of(), rounds=(), sites=(), classes=(), final={}, is_finished=False)
    )

    assert "Not finished." in html


def test_the_report_is_written_as_page_and_as_json(tmp_path: Path) -> None:
    summary = summary_of()

    path = write_report(tmp_path / "run", summary)

    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert orjson.loads((tmp_path / "run" / "report.json").read_bytes())["run"] == "run-1"
    assert not list((tmp_path / "run").glob("*.part"))


def test_tensorboard_reads_the_logs_and_a_second_report_does_not_double_them(
    tmp_path: Path,
) -> None:
    write_tensorboard(tmp_path, summary_of())
    folder = write_tensorboard(tmp_path, summary_of())

    logs = EventAccumulator(str(folder))
    logs.Reload()

    steps = [(e.step, round(e.value, 4)) for e in logs.Scalars("test/accuracy")]
    assert steps == [(1, 0.91), (2, 0.92), (3, 0.93), (4, 0.94)]
    assert [e.value for e in logs.Scalars("privacy/epsilon_max")] == [0.5, 1.0, 1.5, 2.0]
    assert len(logs.Scalars("classes/spam/f1")) == 4


def test_pictures_are_the_same_for_the_same_numbers_and_take_the_pages_colour() -> None:
    first, second = (scores_plot(summary_of().rounds) for _ in range(2))

    assert first is not None
    assert first == second
    assert "currentColor" in first
    assert first.startswith('<svg role="img" aria-label=')


def test_without_numbers_there_is_no_picture() -> None:
    assert scores_plot(()) is None
    assert bytes_plot(()) is None
    assert epsilon_plot(summary_of(is_private=False).sites, "none") is None
    assert entities_plot([]) is None


def test_sites_with_one_history_share_a_line_and_names_are_no_formulas() -> None:
    site = summary_of().sites[0]
    sites = [replace(site, name=f"${n}$") for n in range(3)]

    assert "3 sites" in (epsilon_plot(sites, "example") or "")
    assert "site $0$" in (epsilon_plot(sites[:1], "example") or "")


def test_many_different_sites_are_drawn_as_a_range() -> None:
    site = summary_of().sites[0]
    sites = [replace(site, name=str(n), epsilon_by_round=(1.0, 1.0 + n)) for n in range(40)]

    picture = epsilon_plot(sites, "example")

    assert picture is not None
    assert "sites, from to" in picture


def test_names_in_any_script_are_drawn_without_a_warning() -> None:
    assert "电话号码" in (entities_plot([("电话号码", 3)]) or "")


def test_hidden_counts_are_listed_and_not_drawn() -> None:
    assert counted_entities(ScrubSummary({"A": 1, "B": "<5", "C": 9})) == [("C", 9), ("A", 1)]


def test_summaries_load_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, discreet.server.history; "
        "assert not {'torch', 'matplotlib', 'flwr'} & set(sys.modules), 'too much is loaded'"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
