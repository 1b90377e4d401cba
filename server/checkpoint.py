"""A run on disk after each round: killed at any point, the last whole round is there.

    RUN_DIR/checkpoint/round-000007-HASH.safetensors   weights and optimizer state
    RUN_DIR/checkpoint/round-000007.json               the rest, naming that file and its hash

Both are written aside, synced, then renamed, the JSON last: a JSON that exists names tensors
that exist, also when a round is written a second time. Two rounds are kept. A file that does
not match its hash is a fault of the disk and stops the program: an older round is never
taken in silence.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from discreet.common.errors import ConfigError, DataError
from discreet.common.update import Weights
from discreet.server.history import RoundRecord, SiteRecord, read_json, to_json

SCHEMA = 1
"""Version of the files."""

NUM_KEPT = 2
"""Rounds that stay on disk."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run between two rounds.

    Attributes:
        run: Identity of the run.
        plan_fingerprint: Of the plan it was started with.
        round: The last round that is done, 0 before the first.
        weights: The weights after it.
        optimizer_state: State of the server's optimizer, named tensors.
        records: One for each round, in order.
        sites: Site name -> its record.
        started: When the run was started, ISO 8601 in UTC.
    """

    run: str
    plan_fingerprint: str
    round: int
    weights: Weights
    optimizer_state: dict[str, torch.Tensor]
    records: tuple[RoundRecord, ...]
    sites: dict[str, SiteRecord]
    started: str


@dataclass(frozen=True, slots=True)
class _State:
    """What the JSON file holds."""

    schema: int
    run: str
    plan_fingerprint: str
    round: int
    tensors_file: str
    tensors_sha256: str
    records: tuple[RoundRecord, ...]
    sites: dict[str, SiteRecord]
    started: str


def save_checkpoint(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a kill at any point leaves this one or the last one."""
    folder = run_dir / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"round-{checkpoint.round:06d}"
    tensors_file, tensors_sha256 = _write_tensors(folder, stem, checkpoint)
    state = _State(
        schema=SCHEMA,
        run=checkpoint.run,
        plan_fingerprint=checkpoint.plan_fingerprint,
        round=checkpoint.round,
        tensors_file=tensors_file,
        tensors_sha256=tensors_sha256,
        records=checkpoint.records,
        sites=checkpoint.sites,
        started=checkpoint.started,
    )
    aside = folder / f"{stem}.json.part"
    aside.write_bytes(to_json(state))
    put_in_place(aside, folder / f"{stem}.json")
    _remove_old(folder, keep=tensors_file)


def load_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The last whole round of a run folder, or None if there is none.

    Raises:
        DataError: If a file is damaged, missing or of another version.
    """
    states = sorted((run_dir / "checkpoint").glob("round-*.json"))
    if not states:
        return None
    path = states[-1]
    state = read_json(_State, path.read_bytes(), path)
    if state.schema != SCHEMA:
        raise DataError(
            f"{path}: schema must be {SCHEMA}, got {state.schema}: resume with the version of "
            "discreet that started the run"
        )
    tensors = _read_tensors(path.parent / state.tensors_file, state.tensors_sha256, path)
    return Checkpoint(
        run=state.run,
        plan_fingerprint=state.plan_fingerprint,
        round=state.round,
        weights=Weights(_part(tensors, "weights/")),
        optimizer_state=_part(tensors, "optimizer/"),
        records=state.records,
        sites=state.sites,
        started=state.started,
    )


def check_resumable(checkpoint: Checkpoint, plan_fingerprint: str, run_dir: Path) -> None:
    """Refuse to go on with another plan than the run was started with.

    Raises:
        ConfigError: If the plans differ in the part that sites agree to.
    """
    if checkpoint.plan_fingerprint != plan_fingerprint:
        raise ConfigError(
            f"{run_dir}: the plan must be the one that the run was started with, fingerprint "
            f"{checkpoint.plan_fingerprint[:12]}, got {plan_fingerprint[:12]}: resume with that "
            "plan, or start a new run in another folder"
        )


def put_in_place(aside: Path, path: Path) -> None:
    """Give a file that is written its final name, in one step that a crash cannot split."""
    _sync(aside)
    aside.replace(path)
    # The rename itself is only safe once the folder is on disk.
    _sync(path.parent)


def _write_tensors(folder: Path, stem: str, checkpoint: Checkpoint) -> tuple[str, str]:
    """Write the tensors; give the file's name and its hash."""
    from safetensors.torch import save_file

    tensors = {f"weights/{name}": t.contiguous() for name, t in checkpoint.weights.items()}
    for name, tensor in checkpoint.optimizer_state.items():
        tensors[f"optimizer/{name}"] = tensor.contiguous()
    aside = folder / f"{stem}.safetensors.part"
    save_file(tensors, aside)
    sha256 = _sha256(aside)
    path = folder / f"{stem}-{sha256[:12]}.safetensors"
    put_in_place(aside, path)
    return path.name, sha256


def _read_tensors(path: Path, sha256: str, state_path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    if not path.is_file() or _sha256(path) != sha256:
        raise DataError(
            f"{path}: is missing or does not match the hash in {state_path.name}: restore it, or "
            f"delete {state_path.name} to go on from the round before"
        )
    loaded: dict[str, torch.Tensor] = load_file(path)
    return loaded


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_old(folder: Path, *, keep: str) -> None:
    """Delete all rounds but the last ones: the JSON first, as it names the tensors.

    Args:
        folder: Where they are.
        keep: The tensors of the newest round; others of that round were left by a kill.
    """
    states = sorted(folder.glob("round-*.json"))
    for path in states[:-NUM_KEPT]:
        path.unlink()
    kept = [path.stem for path in states[-NUM_KEPT:]]
    for path in folder.glob("round-*.safetensors"):
        stem = path.name.rpartition("-")[0]
        if stem not in kept or (stem == kept[-1] and path.name != keep):
            path.unlink()
