"""What crosses the wire arrives as it was sent, or is refused."""

import gc
import os
import weakref

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.errors import DataError, RefusalCode
from discreet.common.update import ClippedUpdate
from discreet.common.wire import (
    PROTOCOL_VERSION,
    declared_size,
    decode_tensors,
    encode_tensors,
    encode_update,
    num_bytes,
    pack_arrays,
    read_reply,
    read_task,
    refusal_content,
    reply_content,
    tensors_sha256,
    train_content,
    unpack_arrays,
)

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def update() -> ClippedUpdate:
    return ClippedUpdate({"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(0.5)})


def task_content() -> RecordDict:
    arrays = encode_tensors({"w": torch.ones(2)})
    return train_content(arrays, run="r1", round_number=3, plan_json=b"{}")


@given(shape=SHAPES, dtype=st.sampled_from(DTYPES))
def test_tensors_of_every_shape_and_type_arrive_unchanged(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = torch.randn(shape).to(dtype)

    decoded = decode_tensors(encode_tensors({"x": tensor}))["x"]

    assert decoded.dtype == dtype
    assert decoded.shape == tensor.shape
    assert torch.equal(decoded, tensor)


def test_a_transposed_tensor_arrives_as_it_looks() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T

    assert torch.equal(decode_tensors(encode_tensors({"x": tensor}))["x"], tensor)


def test_flowers_own_strategies_can_read_what_numpy_has() -> None:
    record = encode_tensors({"x": torch.arange(4.0)})

    assert record["x"].numpy().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_what_flower_packed_can_be_read() -> None:
    record = ArrayRecord({"x": Array(torch.arange(4.0).numpy())})

    assert decode_tensors(record)["x"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_decoded_tensor_can_be_written_to_without_touching_the_message() -> None:
    record = encode_tensors({"x": torch.zeros(2)})

    decode_tensors(record)["x"].add_(1)

    assert decode_tensors(record)["x"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "array",
    [
        Array("int64", (1,), "numpy.ndarray", b"\0" * 8),
        Array("float32", (2,), "numpy.ndarray", b"not an array"),
        Array("float32", (2,), "pickle", b"\0" * 8),
        Array("bfloat16", (3,), "discreet.bfloat16", b"\0" * 4),
        Array("float32", (2,), "numpy.ndarray", b""),
    ],
)
def test_a_malformed_tensor_is_refused(array: Array) -> None:
    with pytest.raises(DataError, match="'x'"):
        decode_tensors(ArrayRecord({"x": array}))


def test_a_header_that_disagrees_with_the_record_is_refused() -> None:
    good = encode_tensors({"x": torch.zeros(4)})["x"]
    lying = Array(good.dtype, (2,), good.stype, good.data)

    with pytest.raises(DataError, match="do not agree"):
        decode_tensors(ArrayRecord({"x": lying}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_arrives_in_the_plans_number_format(dtype: str) -> None:
    received = read_reply(reply_content(encode_update(update(), dtype=dtype)))

    assert not isinstance(received, RefusalCode)
    assert {str(t.dtype) for t in received.values()} == {f"torch.{dtype}"}
    assert torch.equal(received["w"].float(), update()["w"])


def test_nothing_leaves_a_client_but_the_update_and_constants() -> None:
    content = reply_content(encode_update(update(), dtype="float32"))

    assert set(content) == {"reply", "update"}
    assert set(content["reply"]) == {"version", "code", "sha256"}
    assert content["reply"]["version"] == PROTOCOL_VERSION
    assert not content["reply"]["code"]


def test_a_size_travels_only_where_it_is_declared() -> None:
    declared = reply_content(encode_update(update(), dtype="float32"), num_examples=7)

    assert declared_size(declared) == 7
    with pytest.raises(DataError, match="declares no size"):
        declared_size(reply_content(encode_update(update(), dtype="float32")))


@pytest.mark.parametrize("size", [0, -1, 1.5, "7"])
def test_a_size_that_is_no_size_is_refused(size: float | str) -> None:
    content = RecordDict({"reply": ConfigRecord({"num_examples": size})})

    with pytest.raises(DataError, match="declares no size"):
        declared_size(content)


@pytest.mark.parametrize("code", list(RefusalCode))
def test_a_refusal_is_a_code_and_nothing_else(code: RefusalCode) -> None:
    content = refusal_content(code)

    assert read_reply(content) == code
    assert set(content) == {"reply"}
    assert set(content["reply"]) == {"version", "code", "sha256"}


def test_an_unknown_refusal_code_is_refused() -> None:
    content = refusal_content(RefusalCode.BUDGET)
    content["reply"]["code"] = "the text was: ..."

    with pytest.raises(DataError, match="unknown refusal code"):
        read_reply(content)


def test_a_reply_of_another_version_is_refused() -> None:
    content = reply_content(encode_update(update(), dtype="float32"))
    content["reply"]["version"] = PROTOCOL_VERSION + 1

    with pytest.raises(DataError, match="protocol version must be 1, got 2"):
        read_reply(content)


def test_a_damaged_update_is_refused() -> None:
    content = reply_content(encode_update(update(), dtype="float32"))
    array = content["update"]["w"]
    content["update"]["w"] = Array(array.dtype, array.shape, array.stype, array.data[:-1] + b"\x01")

    with pytest.raises(DataError, match="do not match its hash"):
        read_reply(content)


def test_a_reply_without_records_is_refused() -> None:
    with pytest.raises(DataError, match="no reply record"):
        read_reply(RecordDict())
    content = reply_content(encode_update(update(), dtype="float32"))
    del content["update"]
    with pytest.raises(DataError, match="lacks its reply or update"):
        read_reply(content)


def test_a_task_arrives_whole() -> None:
    task = read_task(task_content())

    assert (task.run, task.round_number, task.plan_json) == ("r1", 3, b"{}")
    assert task.weights["w"].tolist() == [1.0, 1.0]
    assert task.weights_sha256 == tensors_sha256(encode_tensors({"w": torch.ones(2)}))


@pytest.mark.parametrize("key", ["run", "round", "plan"])
def test_a_task_that_lacks_a_field_is_refused(key: str) -> None:
    content = task_content()
    del content["task"][key]

    with pytest.raises(DataError, match="lacks run, round or plan"):
        read_task(content)


def test_the_hash_covers_names_types_and_shapes() -> None:
    base = tensors_sha256(encode_tensors({"x": torch.zeros(4)}))

    assert tensors_sha256(encode_tensors({"y": torch.zeros(4)})) != base
    assert tensors_sha256(encode_tensors({"x": torch.zeros(2, 2)})) != base
    assert tensors_sha256(encode_tensors({"x": torch.zeros(2, dtype=torch.float64)})) != base


def test_the_bytes_of_a_message_are_its_tensors() -> None:
    update = ClippedUpdate({"w": torch.zeros(100)})

    content = reply_content(encode_update(update, dtype="bfloat16"))

    assert num_bytes(content) == 200


def test_flowers_telemetry_is_off_once_the_wire_is_loaded() -> None:
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"


@pytest.mark.parametrize(
    "header", [b"(" * 5000, b"{'descr': '<f4', 'shape': (2,)" + b"[" * 900, b"1" * 60]
)
def test_a_header_is_compared_and_never_evaluated(header: bytes) -> None:
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    hostile = Array("float32", (2,), "numpy.ndarray", data + b"\0" * 8)

    with pytest.raises(DataError, match="do not agree"):
        decode_tensors(ArrayRecord({"x": hostile}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_negative_length_is_refused(dtype: str) -> None:
    stype = "discreet.bfloat16" if dtype == "bfloat16" else "numpy.ndarray"

    with pytest.raises(DataError, match="do not agree"):
        decode_tensors(ArrayRecord({"x": Array(dtype, (-1,), stype, b"\0" * 8)}))


@given(shape=SHAPES, dtype=st.sampled_from(DTYPES))
def test_packed_arrays_unpack_to_the_same_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    arrays = encode_tensors({"x": torch.randn(shape).to(dtype), "y": torch.ones(2)})

    assert tensors_sha256(unpack_arrays(pack_arrays(arrays))) == tensors_sha256(arrays)


@pytest.mark.parametrize("content", [b"", b"[1]\n", b"nothing", b'[["x","float32",[2],3,8]]\n'])
def test_what_was_not_packed_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="damaged"):
        unpack_arrays(content)


def test_a_message_that_was_counted_and_read_is_freed_at_once() -> None:
    content = reply_content(encode_update(update(), dtype="float32"))
    arrays = weakref.ref(content["update"])
    gc.disable()
    try:
        num_bytes(content)
        read_reply(content)
        del content

        assert arrays() is None
    finally:
        gc.enable()
