"""`discreet status`: what a server is doing, from a file that grows old when it is killed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from discreet.common.errors import DataError
from discreet.deploy.cli import cli
from discreet.deploy.status import (
    STALE_SECONDS,
    STATUS_FILE,
    Status,
    StatusFile,
    is_over,
    is_stale,
    read_status,
    status_lines,
)

FIRST = Status(
    name="support",
    run="ab12",
    state="waiting",
    address="127.0.0.1:7443",
    is_secure=True,
    round=0,
    total_rounds=20,
    min_sites=2,
)


def shown(run_dir: Path, *options: str) -> str:
    result = CliRunner().invoke(cli, ["status", str(run_dir), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_is_there_as_soon_as_the_server_is(tmp_path: Path) -> None:
    with StatusFile(tmp_path, FIRST, lambda: ("north",)):
        status = read_status(tmp_path)

    assert status == replace(FIRST, attending=("north",), updated=status.updated)
    assert abs(status.updated - time.time()) < 5


def test_it_is_written_anew_without_a_round(tmp_path: Path) -> None:
    names: list[str] = []
    with StatusFile(tmp_path, FIRST, lambda: tuple(names)):
        names.append("late")
        deadline = time.monotonic() + 5
        while not read_status(tmp_path).attending and time.monotonic() < deadline:
            time.sleep(0.02)

        assert read_status(tmp_path).attending == ("late",)


def test_a_server_that_ends_before_its_time_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StatusFile(tmp_path, FIRST, tuple):
        raise KeyboardInterrupt

    assert read_status(tmp_path).state == "stopped"


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    with StatusFile(tmp_path, FIRST, tuple) as file:
        file.set(replace(file.status, state="finished"))

    assert read_status(tmp_path).state == "finished"


def test_a_server_that_was_killed_is_told_by_the_age_of_its_file() -> None:
    fresh = replace(FIRST, updated=time.time())
    old = replace(FIRST, updated=time.time() - STALE_SECONDS - 1)

    assert not is_stale(fresh)
    assert is_stale(old)
    assert is_over(old)
    assert not is_stale(replace(old, state="finished"))
    assert any("no word from it" in line for line in status_lines(old))


def test_wherever_an_epsilon_stands_its_unit_stands_beside_it_and_it_is_rounded_up() -> None:
    lines = status_lines(replace(FIRST, updates=2, accuracy=0.97, epsilon_max=1.001))

    assert "epsilon 1.01 (unit example)" in "\n".join(lines)


def test_refusals_and_failures_stand_with_their_cause() -> None:
    status = replace(FIRST, updates=0, refused={"north": "budget"}, failed={"south": "no_reply"})

    lines = "\n".join(status_lines(status))

    assert "north: budget" in lines
    assert "south: no_reply" in lines


def test_no_tls_is_said() -> None:
    assert "no TLS" in "\n".join(status_lines(replace(FIRST, is_secure=False)))


def test_the_command_shows_it_to_people_and_programs(tmp_path: Path) -> None:
    with StatusFile(tmp_path, FIRST, lambda: ("north",)):
        for_people, for_programs = shown(tmp_path), json.loads(shown(tmp_path, "--json"))

    assert "1 there, 2 needed" in for_people
    assert for_programs["attending"] == ["north"]
    assert for_programs["schema"] == 1
    assert for_programs["stale"] is False


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    with StatusFile(tmp_path, FIRST, tuple) as file:
        file.set(replace(file.status, state="finished"))

    assert "finished" in shown(tmp_path, "--watch")


def test_a_folder_without_a_status_is_one_clear_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["status", str(tmp_path)])

    assert result.exit_code == 2
    assert STATUS_FILE in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 1}'])
def test_a_damaged_status_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATUS_FILE).write_bytes(content)

    with pytest.raises(DataError, match=STATUS_FILE):
        read_status(tmp_path)
