"""The Flower app of a site: an update or a code, and never a word more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from site_parts import plan_of, runtime_of, site_of, start_weights, texts

from discreet.client.app import make_client_app
from discreet.common.corpus import RawText
from discreet.common.errors import RefusalCode
from discreet.common.wire import declared_size, encode_tensors, read_reply, train_content

CANARY = "zyxwvut-canary"


@pytest.fixture(autouse=True)
def _identity() -> None:
    # Flower's messages read the identity of the process they are made in.
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def content_of(**changes: object) -> RecordDict:
    plan = plan_of(federation=changes.pop("federation", {}))  # type: ignore[arg-type]
    content = train_content(
        encode_tensors(start_weights(plan)),
        run="run",
        round_number=1,
        plan_json=plan.shared_json(),
    )
    task = content["task"]
    assert isinstance(task, ConfigRecord)
    for name, value in changes.items():
        task[name] = value  # type: ignore[assignment]
    return content


def asked(app: ClientApp, content: RecordDict) -> RecordDict:
    message = Message(content, 2, "train", group_id="1")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    return app(message, context).content


def app_of(folder: Path, **policy: object) -> ClientApp:
    rows = [RawText(f"{CANARY} {row.text}", row.label, CANARY, row.row) for row in texts()]
    runtime = runtime_of(site_of(folder, **policy), rows)
    return make_client_app(lambda _: runtime)


def words_in(content: RecordDict) -> str:
    return "".join(repr(dict(record)) for record in content.config_records.values())


def test_the_answer_is_an_update_that_the_server_can_read(tmp_path: Path) -> None:
    answer = asked(app_of(tmp_path), content_of())

    update = read_reply(answer)

    assert not isinstance(update, RefusalCode)
    assert {t.dtype for t in update.values()} == {torch.float32}
    assert set(answer) == {"reply", "update"}
    assert set(answer.config_records["reply"]) == {"version", "code", "sha256"}


def test_bfloat16_travels_as_bfloat16(tmp_path: Path) -> None:
    answer = asked(app_of(tmp_path), content_of(federation={"update_dtype": "bfloat16"}))

    update = read_reply(answer)

    assert not isinstance(update, RefusalCode)
    assert {t.dtype for t in update.values()} == {torch.bfloat16}


def test_a_declared_size_travels_with_the_update(tmp_path: Path) -> None:
    app = app_of(tmp_path, allow_declared_size=True)

    answer = asked(app, content_of(federation={"weights": "declared"}))

    assert declared_size(answer) == 12


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"task": ConfigRecord({"version": 1})}),
        RecordDict({"task": ConfigRecord({"version": 1}), "weights": ArrayRecord()}),
        content_of(version=2),
        content_of(version="1"),
        content_of(sha256="0" * 64),
        content_of(round="one"),
        content_of(plan="a plan"),
        content_of(plan=b"{}"),
    ],
)
def test_a_message_of_another_program_is_refused_as_plan(
    tmp_path: Path, content: RecordDict
) -> None:
    answer = asked(app_of(tmp_path), content)

    assert read_reply(answer) == RefusalCode.PLAN
    assert set(answer) == {"reply"}


def test_a_message_that_cannot_be_read_does_not_answer_the_one_before(tmp_path: Path) -> None:
    app = app_of(tmp_path)
    asked(app, content_of())

    assert read_reply(asked(app, content_of(sha256="0" * 64))) == RefusalCode.PLAN


def test_a_refusal_is_a_code_and_nothing_else(tmp_path: Path) -> None:
    answer = asked(app_of(tmp_path, max_rounds=1), content_of())

    assert read_reply(answer) == RefusalCode.POLICY
    assert set(answer) == {"reply"}
    assert dict(answer.config_records["reply"]) == {"version": 1, "code": "policy", "sha256": ""}


def test_no_word_of_a_text_is_in_an_answer(tmp_path: Path) -> None:
    app = app_of(tmp_path)

    for content in (content_of(), content_of(round=2), content_of(version=9)):
        answer = asked(app, content)
        assert CANARY not in words_in(answer)
        assert CANARY not in repr(answer.array_records)
        assert CANARY not in repr(answer.metric_records)


def test_only_training_is_answered(tmp_path: Path) -> None:
    message = Message(content_of(), 2, "evaluate", group_id="1")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})

    with pytest.raises(ValueError, match="evaluate"):
        app_of(tmp_path)(message, context)
