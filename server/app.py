"""The Flower `ServerApp` of a run: the same one in simulation and behind the gRPC link."""

from __future__ import annotations

from collections.abc import Callable

from discreet.server.checkpoint import Checkpoint
from discreet.server.loop import RunSetup, run_rounds

# isort: split
# After `loop`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp


def make_server_app(setup: RunSetup, on_end: Callable[[Checkpoint], None]) -> ServerApp:
    """A Flower app whose main function runs the rounds of `setup`.

    Args:
        setup: The run.
        on_end: Given the state after the last round; Flower's main functions return nothing.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        on_end(run_rounds(grid, setup))

    return app
