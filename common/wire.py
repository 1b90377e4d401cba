"""What crosses between server and client, as Flower records.

The server sends `task` (version, run, round, plan, hash) and `weights`; a client answers with
`reply` (version, code, hash) and, unless it refuses, `update`. Those are all the fields that
leave a client: none of them depends on its text except the clipped update.

Tensors of a NumPy type travel in Flower's own array format, so Flower's strategies can read
them; bfloat16, which NumPy lacks, travels as raw 16-bit words under a serialization type of
our own. The hash covers names, types, shapes and bytes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass

# Flower reports its use and looks for updates unless told not to, and reads this at import.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
import orjson
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from discreet.common.errors import DataError, RefusalCode
from discreet.common.update import ClippedUpdate, Update, Weights

TensorRecord = ArrayRecord
"""Named tensors as Flower carries them."""

PROTOCOL_VERSION = 1
"""Raised whenever a field changes its meaning; both sides refuse another one."""

_NUMPY = "numpy.ndarray"
_BFLOAT16 = "discreet.bfloat16"
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class TrainTask:
    """What the server asks of a client in one round.

    Attributes:
        run: Identifier of the run.
        round_number: Round of the run, from 1.
        plan_json: `Plan.shared_json` of the plan.
        weights: The weights to start from.
        weights_sha256: Hash of those weights, checked.
    """

    run: str
    round_number: int
    plan_json: bytes
    weights: Weights
    weights_sha256: str


def encode_tensors(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Pack named tensors of any shape, float64 / float32 / float16 / bfloat16."""
    record = ArrayRecord()
    # Flower's constructor would copy every array once more.
    for name, tensor in tensors.items():
        record[name] = _encode_tensor(tensor)
    return record


def decode_tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Unpack what `encode_tensors` packed.

    Raises:
        DataError: If a type is not allowed, or bytes and shape do not agree.
    """
    return {name: _decode_array(name, array) for name, array in record.items()}


def tensors_sha256(record: ArrayRecord) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(record):
        array = record[name]
        digest.update(repr((name, array.dtype, array.shape, array.stype)).encode())
        digest.update(array.data)
    return digest.hexdigest()


def num_bytes(content: RecordDict) -> int:
    """Bytes of all tensors in a message: what the network has to carry."""
    # Not `content.array_records`: that view holds the message in a cycle of references, and it
    # would stay in memory until the garbage collector happens to run.
    records = (record for record in content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())


def train_content(
    arrays: ArrayRecord, *, run: str, round_number: int, plan_json: bytes
) -> RecordDict:
    """The message that asks for one round of training."""
    task = ConfigRecord(
        {
            "version": PROTOCOL_VERSION,
            "run": run,
            "round": round_number,
            "plan": plan_json,
            "sha256": tensors_sha256(arrays),
        }
    )
    return RecordDict({"task": task, "weights": arrays})


def read_task(content: RecordDict) -> TrainTask:
    """Read and check what `train_content` made.

    Raises:
        DataError: If the version, a field or the hash is not what it must be.
    """
    task, arrays = _records(content, "task", "weights")
    _check_version(task)
    run, number, plan = task.get("run"), task.get("round"), task.get("plan")
    if not (isinstance(run, str) and isinstance(number, int) and isinstance(plan, bytes)):
        raise DataError("the server's task lacks run, round or plan: is it another program?")
    digest = _check_hash(task, arrays)
    return TrainTask(run, number, plan, Weights(decode_tensors(arrays)), digest)


def encode_update(update: ClippedUpdate, *, dtype: str) -> ArrayRecord:
    """Pack a clipped update in the plan's number format, `float32` or `bfloat16`."""
    return encode_tensors({name: t.to(_DTYPES[dtype]) for name, t in update.items()})


def reply_content(
    arrays: ArrayRecord, *, sha256: str | None = None, num_examples: int | None = None
) -> RecordDict:
    """The message that carries a clipped update.

    Args:
        arrays: What `encode_update` made.
        sha256: Its `tensors_sha256`, where the caller has it.
        num_examples: The site's size, a private number: only where plan and policy ask for it.
    """
    reply = ConfigRecord(
        {"version": PROTOCOL_VERSION, "code": "", "sha256": sha256 or tensors_sha256(arrays)}
    )
    if num_examples is not None:
        reply["num_examples"] = num_examples
    return RecordDict({"reply": reply, "update": arrays})


def pack_arrays(arrays: ArrayRecord) -> bytes:
    """Arrays as one string of bytes, for a file: a line of JSON, then the tensors."""
    header = [[n, a.dtype, a.shape, a.stype, len(a.data)] for n, a in arrays.items()]
    return b"".join((orjson.dumps(header), b"\n", *(array.data for array in arrays.values())))


def unpack_arrays(content: bytes) -> ArrayRecord:
    """What `pack_arrays` packed.

    Raises:
        DataError: If it is something else.
    """
    line, _, rest = content.partition(b"\n")
    record = ArrayRecord()
    try:
        start = 0
        for name, dtype, shape, stype, size in orjson.loads(line):
            record[name] = Array(dtype, tuple(shape), stype, rest[start : start + size])
            start += size
    except (TypeError, ValueError) as error:
        raise DataError(
            "packed arrays must be what `pack_arrays` made: they were damaged"
        ) from error
    return record


def refusal_content(code: RefusalCode) -> RecordDict:
    """The message of a client that sends no update: a code, and no word from inside."""
    reply = ConfigRecord({"version": PROTOCOL_VERSION, "code": str(code), "sha256": ""})
    return RecordDict({"reply": reply})


def over_content(run: str, is_finished: bool) -> RecordDict:
    """The message that a run is over."""
    over = ConfigRecord({"version": PROTOCOL_VERSION, "run": run, "finished": is_finished})
    return RecordDict({"over": over})


def read_over(content: RecordDict) -> tuple[str, bool] | None:
    """The run that is over and whether it was finished; None if the message is another one."""
    over = content.get("over")
    if not isinstance(over, ConfigRecord) or over.get("version") != PROTOCOL_VERSION:
        return None
    run, is_finished = over.get("run"), over.get("finished")
    if not (isinstance(run, str) and isinstance(is_finished, bool)):
        return None
    return run, is_finished


def read_reply(content: RecordDict) -> Update | RefusalCode:
    """Read and check a client's answer.

    Returns:
        The update, whose norm nobody has checked yet, or why there is none.

    Raises:
        DataError: If the version, a field or the hash is not what it must be.
    """
    reply = content.get("reply")
    if not isinstance(reply, ConfigRecord):
        raise DataError("a client's answer has no reply record: is it another program?")
    _check_version(reply)
    if code := reply.get("code"):
        if not isinstance(code, str) or code not in set(RefusalCode):
            raise DataError("a client's answer has an unknown refusal code")
        return RefusalCode(code)
    _, arrays = _records(content, "reply", "update")
    _check_hash(reply, arrays)
    return Update(decode_tensors(arrays))


def declared_size(content: RecordDict) -> int:
    """The size that a client declared in its answer.

    Raises:
        DataError: If it declared none, or one that is not a whole number above 0.
    """
    reply = content.get("reply")
    size = reply.get("num_examples") if isinstance(reply, ConfigRecord) else None
    if not (isinstance(size, int) and size > 0):
        raise DataError("a client's answer declares no size, which federation.weights asks for")
    return size


def _records(content: RecordDict, config: str, arrays: str) -> tuple[ConfigRecord, ArrayRecord]:
    found = content.get(config), content.get(arrays)
    if not (isinstance(found[0], ConfigRecord) and isinstance(found[1], ArrayRecord)):
        raise DataError(f"a message lacks its {config} or {arrays} record")
    return found[0], found[1]


def _check_version(record: ConfigRecord) -> None:
    if record.get("version") != PROTOCOL_VERSION:
        raise DataError(
            f"protocol version must be {PROTOCOL_VERSION}, got {record.get('version')!r}: "
            "install the same version of discreet on both sides"
        )


def _check_hash(record: ConfigRecord, arrays: ArrayRecord) -> str:
    digest = tensors_sha256(arrays)
    if record.get("sha256") != digest:
        raise DataError("the tensors of a message do not match its hash: it was damaged")
    return digest


def _encode_tensor(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu().contiguous()
    shape = tuple(tensor.shape)
    if tensor.dtype == torch.bfloat16:
        data = tensor.view(torch.int16).numpy().tobytes()
        return Array("bfloat16", shape, _BFLOAT16, data)
    values = tensor.numpy()
    header = _numpy_header(str(values.dtype), shape)
    # One join copies the tensor once; numpy.save into a buffer copies it twice.
    data = b"".join((header, values.data.cast("B") if values.size else b""))
    return Array(str(values.dtype), shape, _NUMPY, data)


@functools.lru_cache(maxsize=1024)
def _numpy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    content = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def _decode_array(name: str, array: Array) -> torch.Tensor:
    if array.dtype not in _DTYPES:
        raise DataError(f"tensor {name!r}: type {array.dtype!r} is not allowed")
    try:
        return _tensor_of(array)
    except (ValueError, EOFError) as error:
        raise DataError(f"tensor {name!r}: its bytes and its shape do not agree") from error


def _tensor_of(array: Array) -> torch.Tensor:
    if min(array.shape, default=0) < 0:
        raise ValueError("a negative length")
    if array.stype == _BFLOAT16:
        words = np.frombuffer(array.data, dtype=np.int16).reshape(array.shape)
        return torch.from_numpy(words.copy()).view(torch.bfloat16)
    # The header is compared, never parsed: NumPy's parser evaluates what it is given.
    header = _numpy_header(array.dtype, tuple(array.shape))
    if array.stype != _NUMPY or not array.data.startswith(header):
        raise ValueError("not in Flower's array format")
    values = np.frombuffer(array.data, dtype=np.dtype(array.dtype), offset=len(header))
    # Copied: a tensor over the message's read-only bytes could be written to in silence.
    return torch.from_numpy(values.reshape(array.shape).copy())
