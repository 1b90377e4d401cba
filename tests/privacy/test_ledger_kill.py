"""kill -9 at any moment, and two processes at once: the ledger only ever over-counts."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from discreet.privacy.accountant import epsilon_of
from discreet.privacy.events import DpSgdEvent
from discreet.privacy.ledger import Ceiling, Ledger

NUM_KILLS = 25
DELTA = 1e-5
CEILING = Ceiling(epsilon=3.0, delta=DELTA)

# The loop forks before each life, so that a life costs no new interpreter. What is printed has
# been debited: a site would train now.
SPENDER = """
import os, sys
from pathlib import Path
from discreet.privacy.accountant import epsilon_of
from discreet.privacy.events import DpSgdEvent
from discreet.privacy.ledger import Ceiling, Ledger

event, ceiling = DpSgdEvent(0.05, 5.0, 1), Ceiling(1e6, 1e-5)
for num_steps in range(1, 50):
    epsilon_of([DpSgdEvent(0.05, 5.0, num_steps)], 1e-5)
os.write(1, b"ready\\n")
while command := sys.stdin.readline():
    child = os.fork()
    if child == 0:
        number = 0
        while True:
            with Ledger.open(Path(sys.argv[1]), data_set="notes") as ledger:
                for _ in range(3):
                    number += 1
                    ledger.debit(event, run=command, round_number=number, ceiling=ceiling)
                    os.write(1, b"debited\\n")
    os.write(1, b"child %d\\n" % child)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""

RIVAL = """
import sys
from pathlib import Path
from discreet.common.errors import BudgetExceededError
from discreet.privacy.events import DpSgdEvent
from discreet.privacy.ledger import Ceiling, Ledger

num_debits = 0
with Ledger.open(Path(sys.argv[1]), data_set="notes") as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        while True:
            ledger.debit(DpSgdEvent(0.3, 2.0, 3), run=sys.argv[2], round_number=num_debits,
                         ceiling=Ceiling(3.0, 1e-5))
            num_debits += 1
    except BudgetExceededError:
        print(num_debits)
"""


class Output:
    """The lines a process prints, with a time limit."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.handle = process.stdout.fileno()
        self.rest = b""
        self.num_debits = 0

    def wait_for(self, word: bytes, seconds: float = 120.0) -> bytes:
        """The next line that begins with `word`; counts the debits printed before it."""
        end = time.monotonic() + seconds
        while True:
            line, found, rest = self.rest.partition(b"\n")
            if not found:
                ready, _, _ = select.select([self.handle], [], [], end - time.monotonic())
                assert ready, f"no {word!r} within {seconds} seconds"
                self.rest += os.read(self.handle, 65536)
                continue
            self.rest = rest
            self.num_debits += line == b"debited"
            if line.startswith(word):
                return line


def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def tell(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line + b"\n")
    process.stdin.flush()


def test_what_was_debited_before_a_kill_is_never_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    moments = random.Random(11)
    with start(SPENDER, str(path)) as spender:
        output = Output(spender)
        output.wait_for(b"ready")

        for life in range(NUM_KILLS):
            tell(spender, b"life %d" % life)
            child = int(output.wait_for(b"child").split()[1])
            # Some lives end while the file is made or opened, the others in or between debits.
            for _ in range(moments.choice([0, 0, 1, 2, 3, 6])):
                output.wait_for(b"debited")
            time.sleep(moments.uniform(0, 0.005))
            os.kill(child, signal.SIGKILL)
            output.wait_for(b"dead")

            if path.exists():
                with Ledger.open(path, data_set="notes") as ledger:
                    ledger.verify()
                    num_entries = len(ledger.entries())
                # A life may have debited once without telling: that is over-counting.
                assert output.num_debits <= num_entries <= output.num_debits + life + 1

    assert output.num_debits > 0
    with Ledger.open(path, data_set="notes") as ledger:
        told = epsilon_of([DpSgdEvent(0.05, 5.0, output.num_debits)], DELTA)
        assert ledger.epsilon(DELTA) >= told


def test_two_processes_at_once_lose_nothing_and_never_pass_the_ceiling(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with start(RIVAL, str(path), "first") as first, start(RIVAL, str(path), "second") as second:
        outputs = [Output(first), Output(second)]
        for output in outputs:
            output.wait_for(b"ready")
        for rival in (first, second):
            tell(rival, b"go")
        told = [int(output.wait_for(b"")) for output in outputs]

    with Ledger.open(path, data_set="notes") as ledger:
        ledger.verify()
        runs = [entry.run for entry in ledger.entries()]
        spent = ledger.epsilon(DELTA)
    assert [runs.count(name) for name in ("first", "second")] == told
    assert spent <= CEILING.epsilon
    # One more would have passed it: nothing was counted twice either.
    assert epsilon_of([DpSgdEvent(0.3, 2.0, 3 * len(runs) + 3)], DELTA) > CEILING.epsilon
