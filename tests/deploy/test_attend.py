"""`discreet client`: what it takes, what it refuses, before it dials."""

from __future__ import annotations

import threading
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from discreet.common.config import load_site
from discreet.common.errors import ConfigError, UnreachableError
from discreet.deploy import attend as attend_module
from discreet.deploy.attend import AttendOptions, _locked, _prepare, attend
from discreet.deploy.cli import cli
from discreet.deploy.progress import JsonProgress, QuietProgress


def site_file(folder: Path, **settings: object) -> Path:
    rows = [{"text": f"soup at noon {i}", "label": "ham"} for i in range(6)]
    (folder / "texts.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    content: dict[str, object] = {
        "name": "north",
        "data": {"path": "texts.jsonl"},
        "scrub": {"enabled": False},
        "policy": {"epsilon": 8.0, "delta": 1e-5},
        "state_dir": "state",
        "server": "127.0.0.1:1",
        **settings,
    }
    path = folder / "site.yaml"
    path.write_bytes(orjson.dumps(content))
    return path


def client(path: Path, *options: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["client", str(path), *options], input=stdin)


def test_it_must_know_the_server(tmp_path: Path) -> None:
    result = client(site_file(tmp_path, server=None))

    assert result.exit_code == 2
    assert "server: is required" in result.stderr


@pytest.mark.parametrize("address", ["here", "here:", ":80", "here:99999", 7443])
def test_the_server_must_be_an_address(tmp_path: Path, address: object) -> None:
    result = client(site_file(tmp_path, server=address))

    assert result.exit_code == 2
    assert "server" in result.stderr


def test_without_tls_it_dials_this_machine_alone(tmp_path: Path) -> None:
    result = client(site_file(tmp_path, server="example.org:7443"))

    assert result.exit_code == 2
    assert "without certificates" in result.stderr
    assert "--insecure" in result.stderr


def test_a_token_needs_a_folder_for_the_certificate(tmp_path: Path) -> None:
    result = client(site_file(tmp_path), "--token", "-", stdin="discreet-join-1.x.y")

    assert result.exit_code == 2
    assert "certs: is required with --token" in result.stderr


def test_a_token_that_is_none_is_refused_and_not_repeated(tmp_path: Path) -> None:
    result = client(site_file(tmp_path, certs="certs"), "--token", "-", stdin="a secret of ours")

    assert result.exit_code == 2
    assert "join token" in result.stderr
    assert "a secret of ours" not in result.output


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu"])
def test_a_device_that_it_cannot_train_on_is_refused(tmp_path: Path, device: str) -> None:
    result = client(site_file(tmp_path, device=device))

    assert result.exit_code == 2
    assert "device" in result.stderr


def test_too_little_text_ends_it_before_it_dials(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    (tmp_path / "texts.jsonl").write_bytes(b'{"text": "soup", "label": "ham"}\n')

    result = client(path)

    assert result.exit_code == 2
    assert "at least 2 texts" in result.stderr


def test_a_state_folder_has_one_client_at_a_time_and_no_lock_outlives_it(tmp_path: Path) -> None:
    with (
        _locked(tmp_path / "state"),
        pytest.raises(ConfigError, match="in use by another client"),
        _locked(tmp_path / "state"),
    ):
        pass

    with _locked(tmp_path / "state"):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_text_is_prepared_once_and_progress_is_shown(tmp_path: Path) -> None:
    import io

    site = load_site(site_file(tmp_path))
    first, second = io.StringIO(), io.StringIO()

    prepared = _prepare(site, JsonProgress(first))
    again = _prepare(site, JsonProgress(second))

    assert orjson.loads(first.getvalue().splitlines()[0])["total"] == 6
    assert second.getvalue() == ""
    assert again == prepared


def test_it_dials_for_ever_until_it_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from discreet.client import link

    site = load_site(site_file(tmp_path))
    agents: list[link.Agent] = []
    made = link.Agent.__init__

    def note(self: link.Agent, options: link.AgentOptions) -> None:
        made(self, options)
        agents.append(self)

    monkeypatch.setattr(link.Agent, "__init__", note)
    progress = QuietProgress(io.StringIO())
    thread = threading.Thread(
        target=lambda: attend(site, options=AttendOptions(), progress=progress)
    )
    thread.start()
    thread.join(2.0)

    assert thread.is_alive()
    agents[0].stop()
    thread.join(20.0)
    assert not thread.is_alive()


def test_a_server_that_comes_up_a_moment_later_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([UnreachableError("not yet"), UnreachableError("not yet"), tmp_path])

    def enrol(folder: Path, name: str, *, server: str, token: str) -> Path:
        answer = next(answers)
        if isinstance(answer, UnreachableError):
            raise answer
        return answer

    monkeypatch.setattr(attend_module, "enrol", enrol)
    monkeypatch.setattr(attend_module, "_PAUSE_SECONDS", 0.0)

    assert attend_module._enrol(tmp_path, "north", "127.0.0.1:1", "a token") == tmp_path


def test_a_server_that_never_comes_up_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enrol(folder: Path, name: str, *, server: str, token: str) -> Path:
        raise UnreachableError("nobody")

    monkeypatch.setattr(attend_module, "enrol", enrol)
    monkeypatch.setattr(attend_module, "ENROL_SECONDS", 0)

    with pytest.raises(UnreachableError, match="nobody"):
        attend_module._enrol(tmp_path, "north", "127.0.0.1:1", "a token")
