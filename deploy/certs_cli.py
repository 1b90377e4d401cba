"""`discreet certs`: who may take part in a federation. Thin: see `deploy/authority.py`.

The operator uses `init`, `token`, `sign`, `revoke` and `show`; a site uses `request`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from discreet.deploy.authority import Authority

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)

_certs_option = click.option(
    "--certs",
    "folder",
    type=_FOLDER,
    default=Path("certs"),
    show_default=True,
    help="The folder of keys and certificates.",
)
_renew_option = click.option(
    "--renew", is_flag=True, help="Also if the site has a live certificate, which stays live."
)


@click.group()
def certs() -> None:
    """Make and revoke the certificates by which server and sites know each other."""


@certs.command()
@_certs_option
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="A host name or address at which sites reach the server. Repeatable.",
)
@click.option("--renew", is_flag=True, help="Make the server a new certificate; sites keep theirs.")
def init(folder: Path, names: tuple[str, ...], *, renew: bool) -> None:
    """Make the federation's authority and the server's certificate (operator)."""
    from discreet.deploy.authority import Authority

    if renew:
        authority = _authority(folder)
        names = authority.renew_server(names)
    else:
        authority = Authority.init(folder, names)
    click.echo(f"authority     {folder}  (keep {folder / 'ca.key'} to yourself)")
    click.echo(f"fingerprint   {authority.fingerprint}")
    click.echo(f"server names  {' '.join(names)}")


@certs.command()
@click.argument("site")
@_certs_option
@click.option("--hours", default=24.0, show_default=True, help="How long it may be used.")
@_renew_option
def token(site: str, folder: Path, *, hours: float, renew: bool) -> None:
    """Make a join token for SITE, shown once: hand it over in private (operator).

    The token is all that standard output gets, so that it can go into a file.
    """
    click.echo(_authority(folder).token(site, hours=hours, renew=renew))
    click.echo(f"for {site!r}, to be used once within {hours:g} hours", err=True)


@certs.command()
@click.argument("site")
@_certs_option
@click.option(
    "--server", metavar="HOST:PORT", help="The server, as in SITE.yaml; it enrols one port above."
)
@click.option(
    "--token",
    "token_file",
    type=click.File("r"),
    metavar="FILE",
    help="The file with the join token; - reads it from standard input.",
)
@click.option(
    "--accept", type=_FILE, metavar="FILE", help="Take what the operator's `sign` has written."
)
def request(
    site: str,
    folder: Path,
    *,
    server: str | None,
    token_file: TextIO | None,
    accept: Path | None,
) -> None:
    """Make SITE's own key and get a certificate for it (site).

    With --server and --token it is enrolled at once. Without, a request is written, which the
    operator signs; --accept takes the answer. The key never leaves the folder.
    """
    from discreet.client import enrol

    if accept is not None:
        certificate = enrol.accept(folder, accept, name=site)
    elif server is not None and token_file is not None:
        from discreet.deploy.endpoint import enrol_address

        where = enrol_address(server)
        certificate = enrol.enrol(folder, site, server=where, token=token_file.read())
    elif server is not None or token_file is not None:
        raise click.UsageError("--server and --token go together")
    else:
        path = enrol.write_request(folder, site)
        click.echo(f"request       {path}  (send it to the operator)")
        click.echo(f"fingerprint   {enrol.request_fingerprint(path)}")
        return
    click.echo(f"certificate   {certificate}")


@certs.command()
@click.argument("site")
@click.argument("request_file", metavar="REQUEST.csr", type=_FILE)
@_certs_option
@click.option("--out", type=_FILE, help="Where to write it. Default: SITE's request as .crt.")
@_renew_option
def sign(site: str, request_file: Path, folder: Path, *, out: Path | None, renew: bool) -> None:
    """Sign SITE's request, once its fingerprint is the one that the site reads out (operator)."""
    from discreet.client.enrol import request_fingerprint
    from discreet.common.tls import read_public
    from discreet.deploy.register import write_file

    authority = _authority(folder)
    click.echo(f"fingerprint   {request_fingerprint(request_file)}")
    pem = authority.sign(read_public(request_file), site, renew=renew)
    path = out or request_file.with_suffix(".crt")
    write_file(path, pem + authority.ca_pem)
    click.echo(f"certificate   {path}  (send it to the site)")


@certs.command()
@click.argument("site")
@_certs_option
def revoke(site: str, folder: Path) -> None:
    """Shut SITE out at once: its certificates and unused tokens (operator)."""
    revoked = _authority(folder).revoke(site)
    for entry in revoked:
        click.echo(f"revoked       {entry.name}  {entry.serial}")
    if not revoked:
        click.echo(f"revoked       unused tokens of {site}")


@certs.command()
@_certs_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(folder: Path, *, as_json: bool) -> None:
    """List certificates and open join tokens (operator)."""
    from discreet.deploy.certs_view import as_object, as_table

    authority = _authority(folder)
    if as_json:
        click.echo(json.dumps(as_object(authority), ensure_ascii=False, indent=1))
    else:
        for line in as_table(authority):
            click.echo(line)


def _authority(folder: Path) -> Authority:
    from discreet.deploy.authority import Authority

    return Authority(folder)
