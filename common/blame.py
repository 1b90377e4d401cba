"""Where a bug happened, in words that may stand in a log: a class and a line of code.

The message of an exception may quote what it choked on; its class and place do not.
"""

from __future__ import annotations

import traceback
from pathlib import Path


def place_of(error: BaseException) -> str:
    """`ValueError at clip.py:41`: the class and the innermost line, never the message."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    return f"{type(error).__name__} at {where}"
