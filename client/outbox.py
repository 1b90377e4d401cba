"""The last update of a site, kept until the next: a round asked for twice is answered once.

What is kept has left the site or is about to: it is clipped and noised, no text is in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from discreet.common.update import ClippedUpdate, Update
from discreet.privacy.clip import check_clipped


class Outbox:
    """A folder that holds at most one update.

    Args:
        folder: Made when the first update is kept; readable by its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "update.safetensors"

    def save(self, update: ClippedUpdate, *, key: str) -> None:
        """Keep an update under a key that names run, round and starting weights."""
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}.partial"
        save_file({name: t.contiguous() for name, t in update.items()}, partial, {"key": key})
        partial.chmod(0o600)
        partial.replace(self._path)

    def load(self, *, key: str, clipping_norm: float) -> ClippedUpdate | None:
        """The update that was kept under this very key, or none.

        Raises:
            RefusedError: If what lies there is over the bound: it was tampered with.
        """
        try:
            with safe_open(self._path, "pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                update = Update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            # A torn file is as good as none: training again is debited again.
            return None
        return check_clipped(update, clipping_norm)
