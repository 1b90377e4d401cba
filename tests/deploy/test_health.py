"""The health probe: 0 if the server serves, 1 if not, with and without TLS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tls_echo import join_by_hand

from discreet.common.errors import UnreachableError
from discreet.common.tls import load_server_tls
from discreet.deploy.authority import Authority
from discreet.deploy.health import main, probe

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def servicer() -> health.HealthServicer:
    servicer = health.HealthServicer()
    servicer.set("", SERVING)
    return servicer


@pytest.fixture
def server(servicer: health.HealthServicer) -> Iterator[grpc.Server]:
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    yield server
    server.stop(None).wait()


@pytest.fixture
def plain(server: grpc.Server) -> str:
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return f"127.0.0.1:{port}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "certs", ["localhost"])


@pytest.fixture
def mutual(server: grpc.Server, authority: Authority, tmp_path: Path) -> str:
    tls = load_server_tls(tmp_path / "certs")
    credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.cert_pem)], tls.ca_pem, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return f"localhost:{port}"


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_server_that_serves_is_healthy(plain: str) -> None:
    result = ask(plain)

    assert (result.exit_code, result.stdout) == (0, "serving\n")


def test_it_runs_as_the_module_that_the_images_name(plain: str) -> None:
    command = [sys.executable, "-m", "discreet.deploy.health", plain]

    assert subprocess.run(command, check=False, timeout=60, capture_output=True).returncode == 0


def test_a_server_that_does_not_serve_is_not_healthy(
    plain: str, servicer: health.HealthServicer
) -> None:
    servicer.set("", NOT_SERVING)

    assert ask(plain).exit_code == 1


def test_nobody_there_is_not_healthy() -> None:
    result = ask("127.0.0.1:1")

    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.stderr


def test_a_server_that_hangs_is_not_healthy(server: grpc.Server) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as hung, pytest.raises(UnreachableError):
        probe(f"127.0.0.1:{hung.getsockname()[1]}", None, seconds=0.5)


def test_the_server_s_own_certificate_opens_its_own_port(mutual: str, tmp_path: Path) -> None:
    assert ask(mutual, "--certs", str(tmp_path / "certs")).exit_code == 0


def test_a_site_asks_with_its_own_certificate(
    mutual: str, authority: Authority, tmp_path: Path
) -> None:
    folder = join_by_hand(authority, tmp_path / "north", "north")

    assert ask(mutual, "--certs", str(folder)).exit_code == 0


def test_a_site_s_settings_say_whom_to_ask_and_how(
    mutual: str, authority: Authority, tmp_path: Path
) -> None:
    join_by_hand(authority, tmp_path / "north", "north")
    (tmp_path / "site.yaml").write_text(
        f"name: north\nserver: {mutual}\ncerts: north\nstate_dir: state\n"
        "data: {path: texts.jsonl}\npolicy: {epsilon: 1, delta: 1e-5}\n"
    )

    assert ask("--site", str(tmp_path / "site.yaml")).exit_code == 0


def test_without_a_certificate_a_mutual_port_tells_nothing(mutual: str) -> None:
    assert ask(mutual).exit_code == 1


@pytest.mark.parametrize(
    "arguments", [[], ["a:1", "--site", "s.yaml"], ["a:1", "--certs", "none"], ["--site", "none"]]
)
def test_what_is_wrong_is_1_too_as_container_engines_ask(arguments: list[str]) -> None:
    result = ask(*arguments)

    assert result.exit_code == 1
    assert result.stderr.startswith("not healthy: ")


def test_settings_without_a_server_are_not_healthy(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        "name: north\nstate_dir: state\ndata: {path: texts.jsonl}\n"
        "policy: {epsilon: 1, delta: 1e-5}\n"
    )

    result = ask("--site", str(tmp_path / "site.yaml"))

    assert (result.exit_code, "server: is required" in result.stderr) == (1, True)
