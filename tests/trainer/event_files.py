"""TensorBoard's event files, read back with TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(run: Path) -> EventAccumulator:
    """Read everything that a run wrote, nothing thinned out."""
    events = EventAccumulator(
        str(run / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "scalars": 0}
    )
    events.Reload()
    return events


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every scalar by tag."""
    events = read_events(run)
    return {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
