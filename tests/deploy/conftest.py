"""Makes the parts of this folder's tests importable."""

from __future__ import annotations

import sys
from pathlib import Path

# Under importlib mode a test folder is not on the path, and `tls_echo` lies in it.
sys.path.insert(0, str(Path(__file__).parent))
