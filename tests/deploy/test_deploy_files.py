"""The files for containers and services: they parse, hold to the rules, and name real commands.

No container engine is at hand where tests run: what would run in one is run as plain processes.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from discreet.deploy.cli import cli
from discreet.deploy.health import main as health

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
SITES = ("site-0000", "site-0001", "site-0002")


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, in order: (name, arguments on one line)."""
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(part[0], part[1]) for part in parts]


def arguments(path: Path, name: str) -> list[str]:
    return [text for found, text in instructions(path) if found == name]


def last_stage(path: Path) -> list[tuple[str, str]]:
    listed = instructions(path)
    start = max(i for i, (name, _) in enumerate(listed) if name == "FROM")
    return listed[start:]


def check_command(words: list[str]) -> None:
    """Hold that `discreet ...` names a command that is there, with options that it has."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        found = command.commands.get(rest.pop(0))
        assert found is not None, words
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert [word for word in rest if word.startswith("--") and word not in known] == [], words


def commands_of(script: str) -> list[list[str]]:
    found = re.findall(r"(?:^|\s|/)discreet ((?:[a-z]+)[^;\n|`']*)", script)
    return [shlex.split(text.replace("$$@", "").partition(">")[0]) for text in found]


def read_unit(path: Path) -> configparser.ConfigParser:
    # A name given twice adds to a list there: the last one is enough here.
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path, encoding="utf-8")
    return parser


def test_there_are_images_for_the_server_and_for_both_kinds_of_client() -> None:
    names = [path.name for path in DOCKERFILES]

    assert names == ["Dockerfile.client", "Dockerfile.client-cuda", "Dockerfile.server"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
class TestDockerfile:
    def test_every_base_has_a_version(self, path: Path) -> None:
        bases = [text.split()[0] for text in arguments(path, "FROM")]

        assert [b for b in bases if ":" not in b or b.endswith(":latest")] == []

    def test_it_runs_as_a_user_without_rights_from_start_to_end(self, path: Path) -> None:
        names = [name for name, _ in last_stage(path)]
        users = [text for name, text in last_stage(path) if name == "USER"]

        assert users == ["10001:10001"]
        assert {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :]) == set()

    def test_every_install_is_pinned_and_leaves_no_cache(self, path: Path) -> None:
        installs = [text for text in arguments(path, "RUN") if "pip install" in text]

        assert installs
        assert [i for i in installs if "-c constraints.txt" not in i] == []
        assert [i for i in installs if "--no-cache-dir" not in i] == []

    def test_it_copies_by_name_what_the_package_is_made_from(self, path: Path) -> None:
        copied = {word for text in arguments(path, "COPY") for word in text.split()[:-1]}
        rooms = {"client", "common", "deploy", "privacy", "server"}

        assert rooms | {"pyproject.toml", "constraints.txt", "LICENSE", "README.md"} <= copied
        assert "." not in copied
        assert arguments(path, "ADD") == []
        sources = {w for w in copied if not w.startswith(("/", "--"))}
        assert [w for w in sources if not (ROOT / w).exists()] == []

    def test_no_secret_and_no_host_of_packages_is_in_it(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8").lower()

        assert "http" not in text
        assert not re.search(r"token|password|secret|\.key", text)

    def test_commands_are_lists_so_that_signals_reach_them(self, path: Path) -> None:
        for name in ("ENTRYPOINT", "CMD"):
            (text,) = arguments(path, name)
            assert isinstance(json.loads(text), list)
        assert json.loads(arguments(path, "ENTRYPOINT")[0]) == ["discreet"]

    def test_its_command_is_there(self, path: Path) -> None:
        check_command(json.loads(arguments(path, "CMD")[0]))

    def test_its_health_check_is_there(self, path: Path) -> None:
        (text,) = arguments(path, "HEALTHCHECK")
        words = json.loads(text.partition(" CMD ")[2])
        known = {option for parameter in health.params for option in parameter.opts}

        assert words[:3] == ["python", "-m", "discreet.deploy.health"]
        assert [word for word in words[3:] if word.startswith("--") and word not in known] == []

    def test_with_a_read_only_root_all_that_is_written_goes_to_tmp_or_the_volume(
        self, path: Path
    ) -> None:
        environment = " ".join(arguments(path, "ENV"))

        (volume,) = arguments(path, "VOLUME")
        assert arguments(path, "WORKDIR")[-1] == volume
        for word in ("HOME=/tmp", "MPLCONFIGDIR=/tmp", "PYTHONDONTWRITEBYTECODE=1"):
            assert word in environment


def test_a_client_image_listens_on_nothing() -> None:
    assert [p.name for p in DOCKERFILES if arguments(p, "EXPOSE")] == ["Dockerfile.server"]


def test_the_compose_file_is_one_server_and_three_sites() -> None:
    services = COMPOSE["services"]

    assert set(services) == {"setup", "server", *SITES}
    mounted = [services[site]["volumes"][0]["volume"]["subpath"] for site in SITES]
    assert mounted == list(SITES)


@pytest.mark.parametrize("service", ["setup", "server", *SITES])
def test_every_service_is_closed_in(service: str) -> None:
    settings = COMPOSE["services"][service]

    assert settings["read_only"] is True
    assert settings["user"] == "10001:10001"
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert "ports" not in settings
    assert "privileged" not in settings
    assert (ROOT / settings["build"]["dockerfile"]).is_file()
    assert (DEPLOY / settings["build"]["context"]).resolve() == ROOT


def test_every_command_of_the_compose_file_is_there() -> None:
    services = COMPOSE["services"]
    scripts = [services[name]["command"][0] for name in ("setup", "server")]

    found = [words for script in scripts for words in commands_of(script)]
    found += [services[site]["command"] for site in SITES]

    assert len(found) == 3 + 1 + 3
    for words in found:
        check_command(words)


def test_the_setup_of_the_compose_file_works_and_may_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    folder.mkdir(mode=0o700)
    program = tmp_path / "discreet"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m discreet.deploy.cli "$@"\n')
    program.chmod(0o755)
    script = COMPOSE["services"]["setup"]["command"][0].replace("$$", "$")
    command = [*COMPOSE["services"]["setup"]["entrypoint"], script]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    for _ in range(2):
        subprocess.run(
            command, cwd=folder, env=environment, check=True, timeout=120, capture_output=True
        )

    shown = CliRunner().invoke(cli, ["certs", "show", "--json", "--certs", str(folder / "certs")])
    assert [token["name"] for token in json.loads(shown.stdout)["tokens"]] == list(SITES)
    for site in SITES:
        token = folder / site / "token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert token.read_text().startswith("discreet-join-1.")
        assert "server: server:7443" in (folder / site / "site.yaml").read_text()


def test_there_is_a_unit_for_the_server_and_one_for_any_site() -> None:
    assert [path.name for path in UNITS] == ["discreet-client@.service", "discreet-server.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
class TestUnit:
    def test_it_is_closed_in(self, path: Path) -> None:
        service = dict(read_unit(path)["Service"])

        wanted = {
            "User": "discreet",
            "UMask": "0077",
            "NoNewPrivileges": "yes",
            "CapabilityBoundingSet": "",
            "ProtectSystem": "strict",
            "ProtectHome": "yes",
            "PrivateTmp": "yes",
            "ProtectKernelTunables": "yes",
            "ProtectKernelModules": "yes",
            "ProtectControlGroups": "yes",
            "RestrictNamespaces": "yes",
            "RestrictSUIDSGID": "yes",
            "LockPersonality": "yes",
            "SystemCallArchitectures": "native",
            "StateDirectoryMode": "0700",
        }
        assert {name: service.get(name) for name in wanted} == wanted

    def test_its_sections_are_those_of_a_service(self, path: Path) -> None:
        assert read_unit(path).sections() == ["Unit", "Service", "Install"]

    def test_its_command_is_there(self, path: Path) -> None:
        found = commands_of(read_unit(path)["Service"]["ExecStart"])

        assert len(found) == 1
        check_command(found[0])

    def test_what_starting_again_cannot_mend_is_not_started_again(self, path: Path) -> None:
        service = read_unit(path)["Service"]

        assert service["Restart"] == "on-failure"
        assert service["RestartPreventExitStatus"] == "2 3"


def test_the_server_goes_on_with_its_run_in_compose_and_systemd_alike() -> None:
    unit = read_unit(DEPLOY / "systemd" / "discreet-server.service")["Service"]["ExecStart"]
    script = COMPOSE["services"]["server"]["command"][0]

    choice = "if [ -e run/plan.yaml ]; then set -- --resume run; else set -- run.yaml --out run; fi"
    assert choice in unit
    assert choice in script


@pytest.mark.parametrize("where", ["compose", "systemd"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_server_that_comes_back_resumes_and_a_new_one_begins(
    where: str, is_begun: bool, tmp_path: Path
) -> None:
    program = tmp_path / "discreet"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    if is_begun:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "plan.yaml").touch()
    if where == "compose":
        service = COMPOSE["services"]["server"]
        command = [*service["entrypoint"], *service["command"]]
    else:
        unit = read_unit(DEPLOY / "systemd" / "discreet-server.service")
        command = shlex.split(unit["Service"]["ExecStart"])
    command = [w.replace("$$", "$").replace("/opt/discreet/bin/", "") for w in command]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    done = subprocess.run(
        command, cwd=tmp_path, env=environment, check=True, timeout=20, capture_output=True
    )

    begin = ["server", "--resume", "run"] if is_begun else ["server", "run.yaml", "--out", "run"]
    words = done.stdout.decode().split()
    assert words == [*begin, "--bind", "0.0.0.0:7443", "--certs", "certs", "--json"]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run(
        ["hadolint", str(path)], check=False, timeout=60, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_every_command_of_the_runbook_is_there() -> None:
    blocks = re.findall(r"^```\n(.*?)^```", RUNBOOK, flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`(discreet (?:certs|server|client|status) [^`]*)`", RUNBOOK)

    found = commands_of("\n".join([*blocks, *quoted]))

    assert len(found) >= 12
    for words in found:
        check_command(words)


def test_the_runbook_fits_on_a_page() -> None:
    assert len(RUNBOOK.splitlines()) <= 90
