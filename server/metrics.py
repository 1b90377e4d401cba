"""The run as Prometheus metrics: public numbers only, nothing that depends on a site's text."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from discreet.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from discreet.server.history import RoundRecord


class ServerMetrics:
    """Counters of one server, served over HTTP while the context is open.

    Args:
        address: HOST:PORT to listen on; none counts and serves nobody.
        num_attending: Gives the number of sites that are there, when it is asked for.
    """

    def __init__(self, address: str | None, num_attending: Callable[[], int]) -> None:
        # Loaded here, because only a server needs it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._address = address
        # Its own, so that two servers of one process do not share numbers.
        self.registry = registry = CollectorRegistry()
        self._round = Gauge("discreet_round", "The last round that is done", registry=registry)
        self._epsilon = Gauge(
            "discreet_epsilon_max",
            "Largest epsilon any site has spent in this run, unit example; 0 without privacy",
            registry=registry,
        )
        attending = Gauge("discreet_sites_attending", "Sites that are there", registry=registry)
        attending.set_function(lambda: float(num_attending()))
        self._updates = Counter("discreet_updates", "Updates taken", registry=registry)
        self._bytes = Counter(
            "discreet_tensor_bytes", "Bytes of tensors", ["direction"], registry=registry
        )
        self._refused = Counter("discreet_refusals", "Refusals", ["code"], registry=registry)
        self._failed = Counter("discreet_failures", "Failures", ["cause"], registry=registry)
        self._seconds = Histogram(
            "discreet_round_seconds",
            "Wall clock of a round",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600),
            registry=registry,
        )

    def __enter__(self) -> ServerMetrics:
        """Start to serve."""
        if self._address is not None:
            from prometheus_client import start_http_server

            host, _, port = self._address.rpartition(":")
            try:
                self._server, self._thread = start_http_server(
                    int(port), addr=host.strip("[]"), registry=self.registry
                )
            except OSError as error:
                raise ConfigError(
                    f"--metrics {self._address}: cannot be listened on: {error.strerror}: "
                    "name another port"
                ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to serve."""
        if self._address is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def observe(self, record: RoundRecord) -> None:
        """Count a round that is done."""
        self._round.set(record.round)
        self._epsilon.set(record.epsilon_max or 0.0)
        self._updates.inc(record.sites)
        self._bytes.labels("up").inc(record.bytes_up)
        self._bytes.labels("down").inc(record.bytes_down)
        self._seconds.observe(record.seconds)
        for code in record.refused.values():
            self._refused.labels(code).inc()
        for cause in record.failed.values():
            self._failed.labels(cause).inc()
