"""Asks a server over gRPC whether it serves: for container health checks and load balancers.

    python -m discreet.deploy.health HOST:PORT [--certs DIR]
    python -m discreet.deploy.health --site SITE.yaml

Exits with 0 if it does and with 1 otherwise, whatever the reason: container engines know no
other code. A server that wants certificates is shown the one in DIR: its own, or a site's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from discreet.common.errors import ConfigError, DiscreetError, UnreachableError
from discreet.common.tls import SERVER_KEY, ClientTls, ServerTls, load_client_tls, load_server_tls

SECONDS: Final = 5.0
"""How long a server may take to answer."""


def probe(address: str, tls: ServerTls | ClientTls | None, seconds: float = SECONDS) -> None:
    """Ask the server at HOST:PORT for its health.

    Raises:
        UnreachableError: If it does not answer in time, or does not serve.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    if tls is None:
        opened = grpc.insecure_channel(address)
    else:
        credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.cert_pem)
        opened = grpc.secure_channel(address, credentials)
    with opened as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=seconds
            )
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else "no answer"
            raise UnreachableError(f"{address}: {code}") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnreachableError(f"{address}: answers, and does not serve")


def _tls(folder: Path | None) -> ServerTls | ClientTls | None:
    if folder is None:
        return None
    if (folder / SERVER_KEY).exists():
        return load_server_tls(folder)
    return load_client_tls(folder)


def _target(
    address: str | None, certs: Path | None, site_file: Path | None
) -> tuple[str, Path | None]:
    if site_file is None and address is not None:
        return address, certs
    if site_file is None or address is not None or certs is not None:
        raise ConfigError("give HOST:PORT, and --certs if it wants certificates; or --site alone")
    from discreet.common.config import load_site

    site = load_site(site_file)
    if site.server is None:
        raise ConfigError(f"{site_file}: server: is required: say where the server is")
    return site.server, site.certs


@click.command()
@click.argument("address", metavar="[HOST:PORT]", required=False)
@click.option("--certs", type=click.Path(path_type=Path, file_okay=False))
@click.option("--site", "site_file", type=click.Path(path_type=Path, dir_okay=False))
def main(address: str | None, certs: Path | None, site_file: Path | None) -> None:
    """Ask a server whether it serves."""
    try:
        where, folder = _target(address, certs, site_file)
        probe(where, _tls(folder))
    except DiscreetError as error:
        click.echo(f"not healthy: {error}", err=True)
        raise click.exceptions.Exit(1) from error
    click.echo("serving")


if __name__ == "__main__":
    main()
