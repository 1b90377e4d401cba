"""TensorBoard logs of a run, written by TensorBoard's own writer, without TensorFlow."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from discreet.server.history import RoundRecord, RunSummary


def write_tensorboard(run_dir: Path, summary: RunSummary) -> Path:
    """Write one event file with a scalar for each number of each round.

    A file of an earlier call is replaced, so that a resumed run is one line and not two.

    Returns:
        The folder to give to `tensorboard --logdir`.
    """
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

    folder = run_dir / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = EventFileWriter(str(folder))
    when = datetime.fromisoformat(summary.started).timestamp() if summary.started else 0.0
    for record in summary.rounds:
        when += record.seconds
        values = [Summary.Value(tag=tag, simple_value=v) for tag, v in _scalars(record).items()]
        event = Event(wall_time=when, step=record.round, summary=Summary(value=values))
        writer.add_event(event)
    writer.close()
    return folder


def _scalars(record: RoundRecord) -> dict[str, float]:
    named = {
        "test/loss": record.loss,
        "test/accuracy": record.accuracy,
        "test/precision": record.precision,
        "test/recall": record.recall,
        "test/f1": record.f1,
        "privacy/epsilon_max": record.epsilon_max,
        "round/sites": float(record.sites),
        "round/refused": float(len(record.refused)),
        "round/failed": float(len(record.failed)),
        "round/seconds": record.seconds,
        "round/bytes_up": float(record.bytes_up),
        "round/bytes_down": float(record.bytes_down),
    }
    scores = {f"classes/{c.label}/f1": c.f1 for c in record.classes}
    return {tag: value for tag, value in (named | scores).items() if value is not None}
