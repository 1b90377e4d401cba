"""Dealing a corpus out to simulated sites."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.corpus import RawText
from discreet.common.errors import ConfigError
from discreet.common.plan import PartitionConfig
from discreet.deploy.partition import deal, site_name


def rows(num: int, *, labels: int = 2, owners: int = 5) -> list[RawText]:
    return [RawText(f"text {i}", str(i % labels), f"owner {i % owners}", i) for i in range(num)]


@settings(max_examples=40)
@given(
    num=st.integers(0, 200),
    num_sites=st.integers(1, 20),
    kind=st.sampled_from(["iid", "dirichlet"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_row_goes_to_exactly_one_site(num: int, num_sites: int, kind: str, seed: int) -> None:
    config = PartitionConfig.model_validate({"kind": kind, "seed": seed})

    sites = deal(rows(num), config, num_sites)

    assert len(sites) == num_sites
    assert sorted(row.row for site in sites for row in site) == list(range(num))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_the_same_seed_deals_the_same(kind: str) -> None:
    config = PartitionConfig.model_validate({"kind": kind, "seed": 3})

    assert deal(rows(100), config, 7) == deal(rows(100), config, 7)


def test_another_seed_deals_otherwise() -> None:
    first, second = (deal(rows(100), PartitionConfig(seed=seed), 4) for seed in (0, 1))

    assert first != second


def test_iid_sites_differ_by_one_row_at_most() -> None:
    sizes = {len(site) for site in deal(rows(103), PartitionConfig(), 10)}

    assert sizes == {10, 11}


def test_a_small_alpha_gives_each_label_to_few_sites() -> None:
    skewed = deal(rows(1000), PartitionConfig(kind="dirichlet", alpha=0.01), 10)
    even = deal(rows(1000), PartitionConfig(kind="dirichlet", alpha=1000.0), 10)

    def largest_share(sites: list[list[RawText]]) -> float:
        return max(Counter(r.label for r in site)["0"] for site in sites) / 500

    assert largest_share(skewed) > 0.5
    # A share of Dirichlet(1000) over 10 sites is 0.1 with a standard deviation of 0.003.
    assert largest_share(even) < 0.12


def test_each_author_becomes_a_site() -> None:
    config = PartitionConfig(kind="field", field="author")

    sites = deal(rows(100, owners=5), config, None)

    assert len(sites) == 5
    assert all(len({row.owner for row in site}) == 1 for site in sites)


def test_authors_of_one_row_are_left_out_and_the_largest_come_first() -> None:
    owned = [RawText("t", "a", owner, i) for i, owner in enumerate("abbcccdde")]

    sites = deal(owned, PartitionConfig(kind="field", field="author"), None)

    assert [site[0].owner for site in sites] == ["c", "b", "d"]


def test_the_number_of_sites_limits_the_authors() -> None:
    owned = [RawText("t", "a", owner, i) for i, owner in enumerate("abbcccdde")]

    sites = deal(owned, PartitionConfig(kind="field", field="author"), 1)

    assert [site[0].owner for site in sites] == ["c"]


def test_a_field_that_nobody_has_is_refused() -> None:
    texts = [RawText("t", "a", None, i) for i in range(4)]

    with pytest.raises(ConfigError, match=r"simulation\.partition\.field"):
        deal(texts, PartitionConfig(kind="field", field="author"), None)


def test_dealing_without_a_number_of_sites_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"simulation\.num_sites"):
        deal(rows(4), PartitionConfig(), None)


def test_a_site_is_never_called_by_its_author() -> None:
    assert site_name(7) == "site-0007"
