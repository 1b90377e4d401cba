"""Number and name types of the settings: each says what a value must be.

Written so that NaN and infinity fail: `0 < nan` is false, so the check refuses.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints


def _positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"must be a finite number > 0, got {value}")
    return value


def _non_negative(value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"must be a finite number >= 0, got {value}")
    return value


def _probability(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(
            f"must be a number > 0 and < 1, got {value}: 1e-5 is usual, far below 1 / examples"
        )
    return value


def _rate(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"must be a number > 0 and <= 1, got {value}")
    return value


Positive = Annotated[float, AfterValidator(_positive)]
"""A finite number above 0."""

NonNegative = Annotated[float, AfterValidator(_non_negative)]
"""A finite number of 0 or more."""

Probability = AfterValidator(_probability)
"""Strictly between 0 and 1."""

Rate = AfterValidator(_rate)
"""Above 0 and at most 1."""


def _address(value: str) -> str:
    host, sign, port = value.rpartition(":")
    if not (sign and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f"must be HOST:PORT, got {value}: write 127.0.0.1:7443")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
"""A whole number of 1 or more."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
"""A short text that is not empty."""

Address = Annotated[str, AfterValidator(_address)]
"""Where a server listens: a name or number, a colon, a port."""
