"""Addresses: what may be listened on or dialled without TLS, and where sites enrol."""

from __future__ import annotations

import ipaddress

from discreet.common.errors import ConfigError

DEFAULT_BIND = "127.0.0.1:7443"
"""Where a server listens unless told."""


def check_plain(address: str, *, is_insecure: bool, setting: str) -> str | None:
    """Refuse to go without TLS past this machine, unless told to.

    Args:
        address: HOST:PORT.
        is_insecure: Whether the user gave `--insecure`.
        setting: What names the address, for the error.

    Returns:
        The warning that must be shown.

    Raises:
        ConfigError: If the address leads off this machine and `is_insecure` is not set.
    """
    if is_insecure:
        return (
            f"--insecure: no TLS on {address}: anyone on the way reads and changes what is sent, "
            "and anyone may call itself a site"
        )
    if not is_loopback(address):
        raise ConfigError(
            f"{setting}: without certificates it must be on this machine (127.0.0.1, ::1 or "
            f"localhost), got {address}: make certificates with `discreet certs`, or say --insecure"
        )
    return f"no TLS on {address}: this machine only"


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT stays on this machine."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def enrol_address(address: str) -> str:
    """Where sites enrol with a join token: the port above the server's."""
    host, port = split_address(address)
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port + 1 if port else 0}"


def split_address(address: str) -> tuple[str, int]:
    """Host, without the brackets of IPv6, and port.

    Raises:
        ConfigError: If it is no HOST:PORT.
    """
    host, sign, port = address.rpartition(":")
    # One port is left above the last, to enrol at.
    if not (sign and host and port.isascii() and port.isdigit() and int(port) < 65535):
        raise ConfigError(f"{address}: must be HOST:PORT, PORT below 65535: write {DEFAULT_BIND}")
    return host.removeprefix("[").removesuffix("]"), int(port)
