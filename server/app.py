"""The Flower `ServerApp` of a run: the same one in simulation and behind the gRPC link."""

from __future__ import annotations

from collections.abc import Callable

from discreet.common.wire import over_content
from discreet.server.checkpoint import Checkpoint
from discreet.server.loop import RunSetup, run_rounds

# isort: split
# After `loop`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

_SECONDS_TO_TELL = 5.0


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


def run_server_app(grid: Grid, setup: RunSetup) -> Checkpoint:
    """Run the app of `setup` on a grid and give the state after the last round.

    Raises:
        UnreachableError: If the quorum was not there in time.
    """
    ended: list[Checkpoint] = []
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    make_server_app(setup, ended.append)(grid, context)
    return ended[0]


def tell_over(grid: Grid, state: Checkpoint, *, is_finished: bool) -> None:
    """Tell every site that is there that the run is over; nobody is waited for long."""
    messages = [
        Message(over_content(state.run, is_finished), node, MessageType.QUERY, group_id="over")
        for node in grid.get_node_ids()
    ]
    for _ in grid.send_and_receive(messages, timeout=_SECONDS_TO_TELL):
        pass
