"""The metrics of a server: what Prometheus reads, public numbers alone."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from discreet.common.errors import ConfigError
from discreet.server.history import RoundRecord
from discreet.server.metrics import ServerMetrics


def record(number: int = 1, *, epsilon: float | None = 2.5) -> RoundRecord:
    return RoundRecord(
        round=number,
        sites_asked=4,
        sites=2,
        epsilon_max=epsilon,
        seconds=0.5,
        bytes_up=100,
        bytes_down=200,
        refused={"north": "budget"},
        failed={"south": "no_reply"},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port: int = opened.getsockname()[1]
        return port


def read(address: str) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_rounds_are_counted_and_served() -> None:
    address = f"127.0.0.1:{free_port()}"

    with ServerMetrics(address, lambda: 3) as metrics:
        metrics.observe(record(1))
        metrics.observe(record(2))
        seen = read(address)

    assert seen[("discreet_round", "")] == 2
    assert seen[("discreet_sites_attending", "")] == 3
    assert seen[("discreet_updates_total", "")] == 4
    assert seen[("discreet_tensor_bytes_total", "up")] == 200
    assert seen[("discreet_tensor_bytes_total", "down")] == 400
    assert seen[("discreet_refusals_total", "budget")] == 2
    assert seen[("discreet_failures_total", "no_reply")] == 2
    assert seen[("discreet_round_seconds_sum", "")] == 1.0
    assert seen[("discreet_epsilon_max", "")] == 2.5


def test_no_site_is_named() -> None:
    with ServerMetrics(None, lambda: 1) as metrics:
        metrics.observe(record())

        labels = {
            value
            for family in metrics.registry.collect()
            for sample in family.samples
            for value in sample.labels.values()
        }

    assert labels.isdisjoint({"north", "south"})


def test_without_privacy_the_largest_epsilon_is_not_made_up() -> None:
    with ServerMetrics(None, lambda: 1) as metrics:
        metrics.observe(record(epsilon=None))

        value = metrics.registry.get_sample_value("discreet_epsilon_max")

    assert value == 0


def test_the_port_is_free_again_afterwards() -> None:
    port = free_port()
    with ServerMetrics(f"127.0.0.1:{port}", lambda: 1):
        pass

    with ServerMetrics(f"127.0.0.1:{port}", lambda: 1):
        assert read(f"127.0.0.1:{port}")


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(ConfigError, match=r"--metrics .*name another port"):
            ServerMetrics(address, lambda: 1).__enter__()
