"""The site's secret key, and files that only the site's user may read.

One key of 32 bytes stands in the site's state folder. Pseudonyms are keyed by it; what else
needs a key takes one derived from it for its purpose. It never leaves the machine, and is
never part of a message, a log line or a `repr`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from discreet.common.errors import DataError

KEY_FILE = "site.key"
KEY_BYTES = 32
_NONCE_BYTES = 12


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner may enter (mode 0700), or make it so.

    Raises:
        DataError: If it cannot be made, or is somebody else's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise DataError(
            f"{folder}: must be a folder of this user, got: {error.strerror}: choose another"
        ) from error
    return folder


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read (mode 0600), whole or not at all.

    It stands under a passing name until all of it is on the disk, so that neither a killed
    process nor a power cut leaves half a file under `path`.
    """
    passing = _passing_name(path)
    try:
        _write(passing, content)
        passing.replace(path)
    except BaseException:
        # Ctrl-C, too: what was half written is of no use to anybody.
        passing.unlink(missing_ok=True)
        raise


def _passing_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def site_key(state_dir: Path) -> bytes:
    """The site's secret, made on first use.

    Two processes that start at once get the same key: a key is linked into place, which
    fails if one is there already.

    Args:
        state_dir: The site's state folder; made (mode 0700) if it is missing.

    Returns:
        32 bytes.

    Raises:
        DataError: If the file is not a key, or others may read it.
    """
    path = state_dir / KEY_FILE
    if not path.exists():
        if not state_dir.exists():
            private_folder(state_dir)
        passing = _passing_name(path)
        try:
            _write(passing, secrets.token_bytes(KEY_BYTES))
            os.link(passing, path)
        except FileExistsError:
            pass  # Another process was first: its key is the site's.
        finally:
            passing.unlink(missing_ok=True)
    if path.stat().st_mode & 0o077:
        raise DataError(f"{path}: must be readable by its owner alone: run chmod 600 on it")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{path}: must hold {KEY_BYTES} bytes, got {len(key)}: restore it from a backup; "
            "without it pseudonyms change and the scrubbed store is made anew"
        )
    return key


def derived_key(key: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose; it tells nothing about `key` or its other uses."""
    # No entity's name begins with a NUL, so this never meets a pseudonym's message.
    return hmac.new(key, f"\0discreet {purpose}".encode(), hashlib.sha256).digest()


def seal(content: bytes, *, key: bytes, name: str) -> bytes:
    """Encrypt and authenticate with AES-256-GCM.

    Args:
        content: What nobody else may read.
        key: 32 bytes.
        name: What the content is; it opens under this name alone, so that sealed files
            cannot be exchanged for each other.

    Returns:
        A nonce of 12 bytes, then the ciphertext with its tag.
    """
    # Random nonces of 96 bits: safe for 2**32 files under one key (NIST SP 800-38D, 8.3).
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, name.encode())


def unseal(sealed: bytes, *, key: bytes, name: str) -> bytes:
    """Open what `seal` made.

    Raises:
        DataError: If it was changed, cut or sealed under another key or name.
    """
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, name.encode())
    except (InvalidTag, ValueError) as error:
        raise DataError(
            f"{name}: cannot be opened with this site's key, or was changed: delete it, the "
            "texts in it are scrubbed again"
        ) from error
