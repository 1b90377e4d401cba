"""`discreet certs`: what it prints, what it writes, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from discreet.common import link_pb2, link_pb2_grpc
from discreet.common.tls import load_client_tls, load_server_tls
from discreet.deploy.authority import Authority
from discreet.deploy.cli import cli

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(line: str, text: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["certs", *line.split()], input=text)

    return run


@pytest.fixture
def federation(run: Run) -> Run:
    assert run("init --name localhost --name 127.0.0.1").exit_code == 0
    return run


def shown(run: Run) -> dict[str, str]:
    certificates = json.loads(run("show --json").stdout)["certificates"]
    return {each["name"]: each["state"] for each in certificates}


def test_init_says_where_the_key_is_and_what_to_compare(run: Run) -> None:
    result = run("init --name localhost")

    assert result.exit_code == 0
    assert "keep certs/ca.key to yourself" in result.stdout
    assert Authority(Path("certs")).fingerprint in result.stdout


def test_the_way_by_hand_leads_to_a_folder_that_loads(federation: Run) -> None:
    request = federation("request north --certs north")
    signed = federation("sign north north/site.csr --out north.answer")
    accepted = federation("request north --certs north --accept north.answer")

    assert [r.exit_code for r in (request, signed, accepted)] == [0, 0, 0]
    assert load_client_tls(Path("north"), "north").name == "north"
    assert shown(federation) == {"localhost": "valid", "north": "valid"}


def test_site_and_operator_see_the_same_fingerprint(federation: Run) -> None:
    request = federation("request north --certs north")
    signed = federation("sign north north/site.csr --out answer")

    lines = [r.stdout.splitlines() for r in (request, signed)]
    found = [next(x for x in each if x.startswith("fingerprint")) for each in lines]
    assert found[0] == found[1]


def test_the_token_alone_is_on_standard_output(federation: Run) -> None:
    result = federation("token north")

    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith("discreet-join-1.")
    assert "within 24 hours" in result.stderr


def test_a_token_enrols_over_the_network(federation: Run) -> None:
    authority = Authority(Path("certs"))
    token = federation("token north").stdout

    class Service(link_pb2_grpc.FederationServicer):
        def Enrol(  # noqa: N802
            self, request: link_pb2.EnrolRequest, context: grpc.ServicerContext
        ) -> link_pb2.EnrolReply:
            certificate = authority.enrol(request.token, request.signing_request)
            return link_pb2.EnrolReply(certificate=certificate)

    server = grpc.server(ThreadPoolExecutor(1))
    link_pb2_grpc.add_FederationServicer_to_server(Service(), server)
    tls = load_server_tls(Path("certs"))
    credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.cert_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        # Sites name the server's port; it enrols at the one above.
        line = f"request north --certs north --server 127.0.0.1:{port - 1} --token -"
        result = federation(line, token)
    finally:
        server.stop(None).wait()

    assert result.exit_code == 0, result.stderr
    assert load_client_tls(Path("north"), "north").name == "north"
    assert json.loads(federation("show --json").stdout)["tokens"] == []


def test_revoking_shows(federation: Run) -> None:
    federation("request north --certs north")
    federation("sign north north/site.csr")

    result = federation("revoke north")

    assert result.exit_code == 0
    assert result.stdout.startswith("revoked")
    assert shown(federation)["north"] == "revoked"


def test_revoking_a_site_that_has_a_token_alone_takes_that(federation: Run) -> None:
    federation("token north")

    result = federation("revoke north")

    assert (result.exit_code, "unused tokens of north" in result.stdout) == (0, True)
    assert json.loads(federation("show --json").stdout)["tokens"] == []


def test_show_lists_names_states_and_serials(federation: Run) -> None:
    federation("request north --certs north")
    federation("sign north north/site.csr")
    federation("token south")

    lines = federation("show").stdout.splitlines()

    serials = [entry.serial for entry in Authority(Path("certs")).certificates()]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["name", "kind", "state"],
        ["localhost", "server", "valid"],
        ["north", "site", "valid"],
        ["south", "token", "open"],
    ]
    assert [line.split()[-1] for line in lines[2:4]] == serials


def test_show_for_scripts_has_a_schema_and_no_secret(federation: Run) -> None:
    token = federation("token south").stdout

    text = federation("show --json").stdout

    view = json.loads(text)
    assert view["schema"] == 1
    assert set(view) == {"schema", "fingerprint", "not_after", "certificates", "tokens"}
    assert set(view["certificates"][0]) == {
        "name",
        "kind",
        "serial",
        "not_after",
        "state",
        "revoked",
        "revoked_at",
    }
    assert set(view["tokens"][0]) == {"name", "expires_at"}
    assert token.split(".")[1] not in text


def test_renewing_the_server_keeps_its_names(federation: Run) -> None:
    before = Path("certs/server.crt").read_bytes()

    result = federation("init --renew")

    assert result.exit_code == 0
    assert "localhost 127.0.0.1" in result.stdout
    assert Path("certs/server.crt").read_bytes() != before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("show --certs none", "discreet certs init"),
        ("init --name localhost", "holds an authority already"),
        ("init --certs new", "--name: give at least one"),
        ("init --certs new --name a:1", "must be a host name or an IP address"),
        ("sign north missing.csr", "no such file"),
        ("sign north certs/ca.crt", "must be a signing request"),
        ("revoke north", "has no live certificate"),
        ("token north --hours 0", "--hours: must be > 0"),
        ("request north --certs n --accept missing", "no such file"),
        ("request north --server a:1 --token certs/ca.crt", "join token: must be the whole line"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(line: str, said: str, federation: Run) -> None:
    result = federation(line)

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


def test_a_second_certificate_for_a_site_is_exit_code_2_unless_renewed(federation: Run) -> None:
    federation("request north --certs north")
    federation("sign north north/site.csr")

    again = federation("sign north north/site.csr")
    renewed = federation("sign north north/site.csr --renew")

    assert (again.exit_code, "--renew" in again.stderr) == (2, True)
    assert renewed.exit_code == 0


def test_another_site_s_request_is_exit_code_2(federation: Run) -> None:
    federation("request north --certs north")

    result = federation("sign south north/site.csr")

    assert result.exit_code == 2
    assert "must be for the site 'south', is for 'north'" in result.stderr


def test_a_key_that_others_may_read_says_the_command_that_mends_it(federation: Run) -> None:
    Path("certs/ca.key").chmod(0o644)

    result = federation("token north")

    assert result.exit_code == 2
    assert "run `chmod 600 certs/ca.key`" in result.stderr


def test_half_of_server_and_token_is_a_wrong_use(federation: Run) -> None:
    assert federation("request north --server a:1").exit_code == 2


def test_no_server_there_is_exit_code_4(federation: Run) -> None:
    token = federation("token north").stdout

    result = federation("request north --certs n --server 127.0.0.1:1 --token -", token)

    assert result.exit_code == 4


def test_the_commands_run_as_a_program_and_load_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from discreet.deploy.cli import cli\n"
        "cli(['certs', 'init', '--name', 'localhost'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ, check=False, timeout=60
    )

    assert done.returncode == 0
