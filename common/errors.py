"""The errors of this program, as one tree.

    DiscreetError
    ├── InputError                what the user gave is wrong            exit code 2
    │   ├── ConfigError           a setting of RUN.yaml or SITE.yaml
    │   ├── DataError             a file, a row, a model or a folder
    │   └── LedgerError           a ledger that cannot be trusted or written
    ├── RefusedError              policy or budget says no               exit code 3
    │   └── BudgetExceededError   the ledger's ceiling would be passed
    ├── NonFiniteUpdateError      local training diverged                exit code 2
    └── UnreachableError          the other side does not answer         exit code 4

A message says which setting, what it must be, what it was and what to do. No message
holds user text: not a row, not a span, not a value taken from one.
"""

from __future__ import annotations

from enum import StrEnum


class RefusalCode(StrEnum):
    """Why a site sent no update. The code is all that crosses the wire."""

    BUDGET = "budget"
    POLICY = "policy"
    PLAN = "plan"
    DATA = "data"
    DIVERGED = "diverged"
    INTERNAL = "internal"


class DiscreetError(Exception):
    """Root of every error that this program raises on purpose."""

    exit_code = 2


class InputError(DiscreetError):
    """Something the user gave is wrong: the message says what to do."""


class ConfigError(InputError):
    """One or more settings are wrong; the message has one line for each."""


class DataError(InputError):
    """A file, a row or a folder is not what the settings say it is."""


class LedgerError(InputError):
    """A ledger is broken, of another data set, or cannot be written: nothing may be trained."""


class RefusedError(DiscreetError):
    """A policy or a budget refuses.

    Attributes:
        code: What the other side is told; the message stays on this side.
    """

    exit_code = 3

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class BudgetExceededError(RefusedError):
    """The next event would pass the ceiling that the site has set."""

    def __init__(self, message: str) -> None:
        super().__init__(RefusalCode.BUDGET, message)


class NonFiniteUpdateError(DiscreetError):
    """An update holds NaN or infinity: it is refused, never repaired."""


class UnreachableError(DiscreetError):
    """The other side does not answer."""

    exit_code = 4
