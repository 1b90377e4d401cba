"""The stable names of report.json, and records that come back from JSON as they were."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from sample_run import summary_of

from discreet.common.errors import DataError
from discreet.server.history import (
    RoundRecord,
    RunSummary,
    final_metrics,
    load_summary,
    read_json,
    to_json,
)

RECORD = RoundRecord(
    round=1, sites_asked=2, sites=2, epsilon_max=0.5, seconds=1.0, bytes_up=10, bytes_down=20
)


def test_report_has_the_keys_that_people_script_against() -> None:
    report = orjson.loads(to_json(summary_of()))

    assert report["schema"] == 1
    assert {"fingerprint", "content"} <= report["plan"].keys()
    assert {"unit", "relation", "epsilon", "delta", "statement"} <= report["guarantee"].keys()
    for site in report["sites"]:
        assert {"name", "epsilon", "ceiling", "rounds", "refused"} <= site.keys()
    for record in report["rounds"]:
        assert {
            "round",
            "sites",
            "loss",
            "accuracy",
            "epsilon_max",
            "seconds",
            "bytes_up",
            "bytes_down",
        } <= record.keys()
    assert report["final"]["accuracy"] == report["rounds"][-1]["accuracy"]
    assert report["scrub"]["entities"] == {"PHONE_NUMBER": 12, "IP_ADDRESS": "<5"}
    assert report["versions"]["torch"]


@pytest.mark.parametrize("is_private", [True, False])
def test_a_report_comes_back_as_it_was(is_private: bool, tmp_path: Path) -> None:
    summary = summary_of(is_private=is_private)
    (tmp_path / "report.json").write_bytes(to_json(summary))

    assert load_summary(tmp_path) == summary


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    data = to_json(replace(RECORD, loss=math.nan, epsilon_max=math.inf))

    back = read_json(RoundRecord, data, Path("x"))

    assert (back.loss, back.epsilon_max) == (None, None)


def test_a_damaged_report_names_the_field_and_not_its_value(tmp_path: Path) -> None:
    data = to_json(summary_of()).replace(b'"bytes_up": 2600', b'"bytes_up": "a secret"', 1)

    with pytest.raises(DataError, match=r"rounds\.0\.bytes_up") as caught:
        read_json(RunSummary, data, tmp_path / "report.json")

    assert "secret" not in str(caught.value)


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no report"):
        load_summary(tmp_path)


def test_a_report_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(to_json(replace(summary_of(), schema=2)))

    with pytest.raises(DataError, match="schema must be 1, got 2"):
        load_summary(tmp_path)


def test_final_metrics_are_those_of_the_last_measured_round() -> None:
    measured = replace(RECORD, accuracy=0.5, f1=0.25)

    assert final_metrics((measured, replace(RECORD, round=2))) == {"accuracy": 0.5, "f1": 0.25}
    assert final_metrics((RECORD,)) == {}
