"""What TensorBoard shows of a run: scalars, pictures, curves, settings, and groups of parameters."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float64, UInt8
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from eval.metrics.binned import ImageCounts, ScoreDistribution
from models.eomt import EoMT
from models.lora import adapter_norms
from shards.errors import InputError
from trainer.collective import explain_failure
from trainer.sharding import whole

logger = logging.getLogger(__name__)

WRITER_THREAD = "_AsyncWriterThread"
"""TensorBoard's thread that writes; the main thread gets its exception with the next event."""


class ForgivingEventFile:
    """Hands events on to a TensorBoard event file until that fails; drops them from then on."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._failed = False

    def add_event(self, event: Any) -> None:
        """Write an event."""
        self._attempt(lambda: self._file.add_event(event))

    def flush(self) -> None:
        """Bring what is waiting to the disk."""
        self._attempt(self._file.flush)

    def close(self) -> None:
        """Flush and close."""
        self._attempt(self._file.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except OSError as error:
            self._failed = True
            logger.warning(
                "%s: cannot be written; the run goes on without TensorBoard: %s",
                self._file.get_logdir(),
                explain_failure(error),
            )


def forgive_write_failures(accelerator: Accelerator) -> None:
    """Let a full disk end TensorBoard's files, not the run. Checkpoints say by themselves if they fail."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            writer = tracker.writer.file_writer
            writer.event_writer = ForgivingEventFile(writer.event_writer)
            threading.excepthook = _without_traceback(threading.excepthook)


def _without_traceback(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def handle(failure: Any) -> None:
        if not (type(failure.thread).__name__ == WRITER_THREAD and isinstance(failure.exc_value, OSError)):
            hook(failure)

    return handle


MOST_POINTS = 127
"""Of a curve; TensorBoard takes no more."""


def show_picture(accelerator: Accelerator, tag: str, picture: UInt8[np.ndarray, "H W 3"], step: int) -> None:
    """Show a picture (R, G, B)."""
    for writer in _writers(accelerator):
        writer.add_image(tag, picture, step, dataformats="HWC")
        writer.flush()


def show_text(accelerator: Accelerator, tag: str, markdown: str, step: int) -> None:
    """Show a text card."""
    for writer in _writers(accelerator):
        writer.add_text(tag, markdown, step)
        writer.flush()


def show_precision_recall(accelerator: Accelerator, tag: str, counts: ImageCounts, step: int) -> None:
    """Show precision over recall at up to 127 thresholds, evenly spread over recall."""
    for writer in _writers(accelerator):
        points = thin_curve(counts)
        writer.add_pr_curve_raw(tag, *points, global_step=step, num_thresholds=points.shape[1])


def thin_curve(counts: ImageCounts) -> Float64[np.ndarray, "6 N"]:
    """Return true and false positives, true and false negatives, precision and recall, recall falling.

    As TensorBoard wants them, one column per threshold from the lowest up.
    """
    curve = counts.curve()
    true, false = curve.true, curve.false
    wanted = np.linspace(1 / MOST_POINTS, 1, MOST_POINTS) * true[-1]
    at = np.unique(np.searchsorted(true, wanted * (1 - 1e-12)))[::-1]
    counted = [true, false, false[-1] - false, true[-1] - true, curve.precision, curve.recall]
    return np.stack(counted)[:, at]


def show_distribution(accelerator: Accelerator, tag: str, spread: ScoreDistribution, step: int) -> None:
    """Show a histogram of the scores of normal pixels, and one of those of anomalous pixels."""
    for writer in _writers(accelerator):
        for name, counts in (("normal", spread.normal), ("anomalous", spread.anomalous)):
            middles = (spread.edges[1:] + spread.edges[:-1]) / 2  # sums are shown nowhere: to a bin's width
            writer.add_histogram_raw(
                f"{tag}/{name}",
                min=float(spread.edges[0]),
                max=float(spread.edges[-1]),
                num=int(counts.sum()),
                sum=float(counts @ middles),
                sum_squares=float(counts @ middles**2),
                bucket_limits=spread.edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )


def start_comparison(
    accelerator: Accelerator, settings: Mapping[str, str | int | float | bool], metrics: Sequence[str]
) -> None:
    """Enter the run into the tab HPARAMS; its metrics there are the latest values of these scalars.

    Args:
        settings: of the whole run, flat.
        metrics: tags of scalars that the run writes.
    """
    for writer in _writers(accelerator):
        experiment, start, _ = hparams(dict(settings), dict.fromkeys(metrics, 0.0))
        for summary in (experiment, start):
            writer.file_writer.add_summary(summary)
        writer.flush()


def end_comparison(accelerator: Accelerator) -> None:
    """Say in the tab HPARAMS that the run has come to its end."""
    for writer in _writers(accelerator):
        writer.file_writer.add_summary(hparams({}, {})[2])
        writer.flush()


def _writers(accelerator: Accelerator) -> Iterator[Any]:
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                yield tracker.writer


@dataclass(frozen=True)
class GroupDetails:
    """Scalars by TensorBoard tag, of a run that logs them; the groups are those of `trainer.optim`."""

    optimizer: torch.optim.Optimizer
    model: EoMT
    max_grad_norm: float
    """To which gradients are clipped; 0: not at all."""

    def __call__(self, grad_norm: float) -> Mapping[str, float]:
        """Read rates, gradients and adapters between the clipping and the optimizer's step.

        Args:
            grad_norm: of all gradients before they were clipped; norms of groups are given as before it too.
        """
        clipped = min(1.0, self.max_grad_norm / (grad_norm + 1e-6)) if self.max_grad_norm else 1.0
        clipped = clipped or 1.0  # of an infinite norm, with fp16
        groups = {str(group["name"]): group for group in self.optimizer.param_groups}
        norms = torch.stack(
            [_norm(group["params"]) for group in groups.values()]
        ).tolist()  # one wait for all
        found = {f"lr/{name}": float(group["lr"]) for name, group in groups.items()}
        found |= {f"grad_norm/{name}": norm / clipped for name, norm in zip(groups, norms, strict=True)}
        return found | {f"lora/{layer}": norm for layer, norm in adapter_norms(self.model).items()}


def _norm(parameters: list[Tensor]) -> Tensor:
    norms = [whole(torch.linalg.vector_norm(p.grad)) for p in parameters if p.grad is not None]
    return (
        torch.linalg.vector_norm(torch.stack(norms))
        if norms
        else torch.zeros((), device=parameters[0].device)
    )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What of a run can be watched while it trains; log.txt is always written."""

    tensorboard: bool = True
    """Write to the run's tensorboard/ folder; what it shows, and what that costs: docs/monitoring.md."""
    pasted_scenes: int = 4
    """So many scenes of the run, all with objects, are shown there when it starts; 0: none."""
    groups: bool = True
    """Log learning rate and gradient norm of every parameter group, and norms of adapters, beside each log
    line."""
    probes: int = 3
    """So many frames of each validation set, always the same, are shown at every validation: ground truth,
    prediction and a map for each of validation.scores; 0: none."""
    curves: bool = True
    """Show precision over recall and the scores of normal and anomalous pixels of validation.pasted."""

    def __post_init__(self) -> None:
        for name in ("pasted_scenes", "probes"):
            if getattr(self, name) < 0:
                raise InputError(f"tracking.{name}: got {getattr(self, name)}; 0 or more are needed")


def start_tracking(
    accelerator: Accelerator,
    config: TrackingConfig,
    settings: Mapping[str, str | int | float | bool],
    metrics: Sequence[str] = (),
) -> None:
    """Open the trackers, so that `accelerator.log` reaches them.

    Args:
        settings: of the whole run, flat: TensorBoard takes no nested ones.
        metrics: tags of the scalars by which runs are compared.
    """
    if config.tensorboard:
        accelerator.init_trackers("tensorboard")
        forgive_write_failures(accelerator)
        start_comparison(accelerator, settings, metrics)
