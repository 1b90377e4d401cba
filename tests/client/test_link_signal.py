"""An agent as a process: a signal ends it in good order."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from link_parts import WAIT, asks, serving, weights

PROGRAM = """
import signal, sys, time
from discreet.client.link import Agent, AgentOptions
from discreet.common.wire import DataError
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    print("working", flush=True)
    time.sleep(60)

agent = Agent(AgentOptions(sys.argv[1], "a", app))
signal.signal(signal.SIGTERM, lambda number, frame: agent.stop())
agent.run()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("is_at_work", [False, True])
def test_a_signal_says_goodbye_and_exits_0(tmp_path: Path, is_at_work: bool) -> None:
    with serving(tmp_path, lost_seconds=60.0) as server:
        command = [sys.executable, "-c", PROGRAM, server.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert server.grid.wait_for_sites(1, WAIT)
            assert process.stdout is not None
            if is_at_work:
                replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT)
                assert process.stdout.readline() == "working\n"

            process.send_signal(signal.SIGTERM)

            if is_at_work:
                assert [reply.error.reason for reply in replies] == ["left"]
            assert process.wait(WAIT) == 0
            assert process.stdout.read() == "stopped\n"
        assert server.grid.get_node_ids() == []
