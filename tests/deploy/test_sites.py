"""The sites of a simulation: how many, whose text, under which settings, prepared once."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest

from discreet.client.prepare import prepare
from discreet.common.errors import ConfigError, DataError
from discreet.common.plan import Plan
from discreet.deploy import sites as sites_module
from discreet.deploy.progress import QuietProgress
from discreet.deploy.sites import SimulatedSites

LABELS = ["ham", "spam"]


class Told(QuietProgress):
    """A progress that remembers."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.phases: list[tuple[str, int]] = []
        self.num_done = 0
        self.num_finished = 0

    def start(self, phase: str, total: int) -> None:
        self.phases.append((phase, total))

    def advance(self, num: int = 1) -> None:
        self.num_done += num

    def finish(self) -> None:
        self.num_finished += 1


def rows(num: int = 24, authors: int = 4) -> list[dict[str, str]]:
    return [
        {"text": f"text number {i}", "label": LABELS[i % 2], "author": f"author {i % authors}"}
        for i in range(num)
    ]


def write(folder: Path, content: list[dict[str, str]]) -> Path:
    path = folder / "texts.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, content)))
    return path


def plan_of(folder: Path, *, privacy: object = None, **simulation: object) -> Plan:
    if not (folder / "texts.jsonl").exists():
        write(folder, rows())
    return Plan.model_validate(
        {
            "name": "test",
            "task": {"labels": LABELS},
            "model": {"kind": "linear", "buckets": 16},
            "privacy": privacy or {"unit": "example", "epsilon": 3.0, "delta": 1e-6},
            "training": {
                "rounds": 2,
                "sample_rate": 1.0,
                "expected_batch_size": 8,
                "learning_rate": 1.0,
            },
            "simulation": {
                "data": {"path": str(folder / "texts.jsonl")},
                "num_sites": 3,
                "scrub": {"enabled": False},
                **simulation,
            },
        }
    )


def sites_of(folder: Path, **simulation: object) -> SimulatedSites:
    return SimulatedSites(plan_of(folder, **simulation), folder / "state")


def texts_of(sites: SimulatedSites, number: int) -> list[str]:
    return [row.text for row in sites.source(number).read()]


def test_each_site_has_a_name_a_folder_and_a_share_of_the_texts(tmp_path: Path) -> None:
    sites = sites_of(tmp_path)

    assert [site.name for site in sites.sites] == ["site-0000", "site-0001", "site-0002"]
    assert [site.state_dir for site in sites.sites] == [
        tmp_path / "state" / site.name for site in sites.sites
    ]
    dealt = [texts_of(sites, number) for number in range(3)]
    assert sorted(text for share in dealt for text in share) == sorted(
        row["text"] for row in rows()
    )


def test_a_plan_without_a_simulation_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path).model_copy(update={"simulation": None})

    with pytest.raises(ConfigError, match="simulation: is required"):
        SimulatedSites(plan, tmp_path / "state")


# policy


def test_without_a_policy_a_site_allows_this_plan_once_and_nothing_more(tmp_path: Path) -> None:
    policy = sites_of(tmp_path).sites[0].policy

    assert (policy.epsilon, policy.delta) == (3.0, 1e-6)
    assert not policy.allow_without_privacy
    assert not policy.allow_declared_size


def test_without_privacy_the_policy_says_so(tmp_path: Path) -> None:
    assert sites_of(tmp_path, privacy="none").sites[0].policy.allow_without_privacy


def test_the_simulations_policy_is_every_sites_and_an_override_is_one_sites(
    tmp_path: Path,
) -> None:
    sites = sites_of(
        tmp_path,
        policy={"epsilon": 5.0, "delta": 1e-6},
        sites={
            "site-0001": {"policy": {"epsilon": 1.0, "delta": 1e-6}},
            "site-0002": {"clean": {"max_chars": 4}, "scrub": {"enabled": False, "encrypt": True}},
        },
    ).sites

    assert [site.policy.epsilon for site in sites] == [5.0, 1.0, 5.0]
    assert [site.clean.max_chars for site in sites] == [100_000, 100_000, 4]
    assert [site.scrub.encrypt for site in sites] == [False, False, True]


def test_an_override_of_a_site_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"simulation\.sites: .* site-0002, got north, site-3"):
        sites_of(tmp_path, sites={"site-3": {}, "north": {}, "site-0001": {}})


# sites by author


def by_author(folder: Path, **simulation: object) -> SimulatedSites:
    partition = {"kind": "field", "field": "author"}
    return sites_of(folder, **{"partition": partition, "num_sites": None, **simulation})


def test_each_author_is_a_site_that_does_not_bear_the_name(tmp_path: Path) -> None:
    sites = by_author(tmp_path)

    assert [site.name for site in sites.sites] == [f"site-000{i}" for i in range(4)]
    assert texts_of(sites, 1) == [row["text"] for row in rows() if row["author"] == "author 1"]


def test_the_number_of_authors_is_remembered_so_that_the_corpus_need_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_author(tmp_path)
    monkeypatch.setattr(sites_module, "read_corpus", lambda _: 1 // 0)

    assert len(by_author(tmp_path).sites) == 4


def test_another_corpus_is_counted_anew(tmp_path: Path) -> None:
    by_author(tmp_path)
    write(tmp_path, rows(authors=6))

    assert len(by_author(tmp_path).sites) == 6


def test_num_sites_bounds_the_authors_whatever_was_remembered(tmp_path: Path) -> None:
    by_author(tmp_path)

    assert len(by_author(tmp_path, num_sites=3).sites) == 3
    # There are no more sites than authors, however many are asked for.
    assert len(by_author(tmp_path, num_sites=9).sites) == 4


# preparing


def test_every_text_is_told_once_and_a_second_time_nothing_is_done(tmp_path: Path) -> None:
    first, second = Told(), Told()

    sites_of(tmp_path).prepare(first)
    sites_of(tmp_path).prepare(second)

    assert (first.phases, first.num_done, first.num_finished) == ([("scrubbing", 24)], 24, 1)
    assert (second.phases, second.num_done) == ([], 0)


def test_a_prepared_simulation_does_not_read_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites_of(tmp_path).prepare(Told())
    monkeypatch.setattr(sites_module, "read_corpus", lambda _: 1 // 0)

    again = sites_of(tmp_path)
    again.prepare(Told())

    prepared = [prepare(site, again.source(i)) for i, site in enumerate(again.sites)]
    assert sum(len(p.texts) for p in prepared) == 24


def test_texts_that_cleaning_leaves_out_are_told_too(tmp_path: Path) -> None:
    write(tmp_path, [*rows(), *rows()])
    told = Told()

    sites_of(tmp_path).prepare(told)

    assert told.num_done == 48


def test_only_the_site_whose_settings_changed_is_prepared_again(tmp_path: Path) -> None:
    sites_of(tmp_path).prepare(Told())
    told = Told()

    changed = sites_of(tmp_path, sites={"site-0001": {"clean": {"max_chars": 99}}})
    changed.prepare(told)

    assert told.phases == [("scrubbing", 8)]


@pytest.mark.parametrize("change", [{"num_sites": 4}, {"partition": {"seed": 1}}])
def test_another_deal_is_prepared_anew_and_mixes_nothing(
    tmp_path: Path, change: dict[str, object]
) -> None:
    sites_of(tmp_path).prepare(Told())

    sites = sites_of(tmp_path, **change)
    sites.prepare(Told())

    for number, site in enumerate(sites.sites):
        assert prepare(site, sites.source(number)).texts == texts_of(sites, number)


def test_a_phase_that_fails_is_ended(tmp_path: Path) -> None:
    told = Told()

    with pytest.raises(DataError, match="site-0000: must have at least 2 texts"):
        sites_of(tmp_path, num_sites=24).prepare(told)

    assert told.num_finished == 1


# labels


def test_texts_of_one_label_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [row for row in rows() if row["label"] == "ham"])

    with pytest.raises(DataError, match="2 different labels"):
        sites_of(tmp_path).prepare(Told())


def test_labels_that_the_plan_has_not_are_counted_and_not_named(tmp_path: Path) -> None:
    write(tmp_path, [*rows(), {"text": "more", "label": "zyxw"}])

    with pytest.raises(DataError, match="1 of 25 rows") as caught:
        sites_of(tmp_path).prepare(Told())

    assert "zyxw" not in str(caught.value)
