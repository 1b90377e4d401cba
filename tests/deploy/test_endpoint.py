"""Without TLS nothing leaves this machine, unless the operator says so in as many words."""

from __future__ import annotations

import pytest

from discreet.common.errors import ConfigError
from discreet.deploy.endpoint import check_plain, enrol_address, is_loopback, split_address


@pytest.mark.parametrize(
    "address", ["127.0.0.1:7443", "127.8.9.1:1", "localhost:7443", "[::1]:7443"]
)
def test_this_machine_needs_no_tls_and_is_warned(address: str) -> None:
    warning = check_plain(address, is_insecure=False, setting="--bind")

    assert "no TLS" in warning


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:7443", "[::]:7443", "10.0.0.7:7443", "example.org:7443", "127.0.0.1.example.org:1"],
)
def test_another_machine_needs_tls_or_the_word(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--bind: without certificates.*--insecure"):
        check_plain(address, is_insecure=False, setting="--bind")

    assert "--insecure" in check_plain(address, is_insecure=True, setting="--bind")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:7443", "127.0.0.1:7444"), ("[::1]:7443", "[::1]:7444"), ("host:0", "host:0")],
)
def test_sites_enrol_at_the_port_above(address: str, expected: str) -> None:
    assert enrol_address(address) == expected


@pytest.mark.parametrize("address", ["host", "host:", ":7443", "host:x", "host:65535", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(address)


def test_a_name_that_is_not_localhost_is_not_taken_for_this_machine() -> None:
    assert not is_loopback("localhost.example.org:7443")
