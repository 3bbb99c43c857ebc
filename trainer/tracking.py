"""TensorBoard, log file and profile of a run."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float64, UInt8
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.tensorboard.summary import hparams

from eval.metrics.binned import ImageCounts, ScoreDistribution
from models.eomt import EoMT
from models.lora import adapter_norms
from shards.errors import InputError
from shards.files import write_atomically
from trainer.collective import explain_failure
from trainer.sharding import whole

logger = logging.getLogger(__name__)

MOST_POINTS = 127
"""Points of a curve; TensorBoard takes no more."""
PROFILE_FOLDER = "profile"
WAIT, WARM_UP = 2, 1
"""Steps before the recorded ones: the first are not like the rest, and the profiler's own start costs."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What of a run can be watched while it trains; log.txt is always written."""

    tensorboard: bool = True
    """Write to the run's tensorboard/ folder; what it shows, and what that costs: docs/monitoring.md."""
    pasted_scenes: int = 4
    """Number of scenes of the run, all with objects, shown there when it starts; 0: none."""
    groups: bool = True
    """Log learning rate and gradient norm of every parameter group, and norms of adapters, beside each log
    line."""
    probes: int = 3
    """Number of frames of each validation set, always the same, shown at every validation: ground truth,
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
    """Open TensorBoard's files, and enter the run into the tab HPARAMS: settings, and tags of metrics."""
    if config.tensorboard:
        accelerator.init_trackers("tensorboard")
        experiment, start, _ = hparams(dict(settings), dict.fromkeys(metrics, 0.0))
        _show(accelerator, lambda board: board.file_writer.add_summary(experiment))
        _show(accelerator, lambda board: board.file_writer.add_summary(start))


def end_tracking(accelerator: Accelerator, *, has_ended: bool) -> None:
    """Close TensorBoard's files, and say in the tab HPARAMS whether the run has come to its end."""
    end = hparams({}, {})[2]
    _show(accelerator, lambda board: board.file_writer.add_summary(end) if has_ended else None)
    accelerator.end_training()


def show_scalars(accelerator: Accelerator, scalars: Mapping[str, float], step: int) -> None:
    """Show scalars by their tags."""
    with _forgiving(accelerator):
        accelerator.log(dict(scalars), step=step)


def show_picture(accelerator: Accelerator, tag: str, picture: UInt8[np.ndarray, "H W 3"], step: int) -> None:
    """Show a picture (R, G, B)."""
    _show(accelerator, lambda board: board.add_image(tag, picture, step, dataformats="HWC"))


def show_text(accelerator: Accelerator, tag: str, markdown: str, step: int) -> None:
    """Show a text card."""
    _show(accelerator, lambda board: board.add_text(tag, markdown, step))


def show_precision_recall(accelerator: Accelerator, tag: str, counts: ImageCounts, step: int) -> None:
    """Show precision over recall at up to 127 thresholds, evenly spread over recall."""
    points = thin_curve(counts)
    count = points.shape[1]
    _show(accelerator, lambda board: board.add_pr_curve_raw(tag, *points, step, num_thresholds=count))


def thin_curve(counts: ImageCounts) -> Float64[np.ndarray, "6 N"]:
    """Return true and false positives, true and false negatives, precision and recall, recall falling.

    As TensorBoard wants them, one column per threshold from the lowest up.
    """
    curve = counts.curve()
    true, false = curve.true, curve.false
    wanted = np.linspace(1 / MOST_POINTS, 1, MOST_POINTS) * true[-1]
    at = np.unique(np.searchsorted(true, wanted * (1 - 1e-12)))[::-1]
    return np.stack([true, false, false[-1] - false, true[-1] - true, curve.precision, curve.recall])[:, at]


def show_distribution(accelerator: Accelerator, tag: str, spread: ScoreDistribution, step: int) -> None:
    """Show a histogram of the scores of normal pixels, and one of those of anomalous pixels."""
    middles = (spread.edges[1:] + spread.edges[:-1]) / 2  # sums are shown nowhere: to a bin's width

    low, high, limits = float(spread.edges[0]), float(spread.edges[-1]), spread.edges[1:].tolist()

    def write(board: Any) -> None:
        for name, counts in (("normal", spread.normal), ("anomalous", spread.anomalous)):
            total, squares = float(counts @ middles), float(counts @ middles**2)
            values = (low, high, int(counts.sum()), total, squares, limits, counts.tolist(), step)
            board.add_histogram_raw(f"{tag}/{name}", *values)

    _show(accelerator, write)


def _show(accelerator: Accelerator, write: Callable[[Any], object]) -> None:
    """Let the main rank write to TensorBoard's `SummaryWriter`, if there is one."""
    with _forgiving(accelerator):
        for tracker in accelerator.trackers if accelerator.is_main_process else ():
            write(tracker.writer)
            tracker.writer.flush()


@contextmanager
def _forgiving(accelerator: Accelerator) -> Iterator[None]:
    """Let a full disk end TensorBoard's files, not the run. Checkpoints say by themselves if they fail."""
    try:
        yield
    except OSError as error:
        folder = accelerator.trackers[0].writer.get_logdir()
        accelerator.trackers.clear()
        why = explain_failure(error)
        logger.warning("%s: cannot be written; the run goes on without TensorBoard: %s", folder, why)


def describe_groups(
    optimizer: torch.optim.Optimizer, model: EoMT, max_grad_norm: float, grad_norm: float
) -> dict[str, float]:
    """Return rates and gradient norms of parameter groups, and norms of adapters, by TensorBoard tag.

    To be called between the clipping to `max_grad_norm` (0: none) and the optimizer's step; gradient norms,
    like `grad_norm` of all, are those before the clipping.
    """
    clipped = min(1.0, max_grad_norm / (grad_norm + 1e-6)) if max_grad_norm else 1.0
    clipped = clipped or 1.0  # of an infinite norm, with fp16
    groups = {str(group["name"]): group for group in optimizer.param_groups}
    norms = torch.stack([_norm(group["params"]) for group in groups.values()]).tolist()  # one wait for all
    return {
        **{f"lr/{name}": float(group["lr"]) for name, group in groups.items()},
        **{f"grad_norm/{name}": norm / clipped for name, norm in zip(groups, norms, strict=True)},
        **{f"lora/{layer}": norm for layer, norm in adapter_norms(model).items()},
    }


def _norm(parameters: list[Tensor]) -> Tensor:
    norms = [whole(torch.linalg.vector_norm(p.grad)) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms or [torch.zeros((), device=parameters[0].device)]))


@contextmanager
def log_file(path: Path | None) -> Iterator[None]:
    """Also write log lines to `path`, appending; None writes nothing (ranks other than the main one).

    A log that cannot be written is warned of once, and the run goes on without.
    """
    handler = None
    try:
        handler = _LogFile(path, encoding="utf-8") if path else None
    except OSError as error:
        _warn_of_log(str(path), error)
    if handler is None:
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        handler.stop()


class _LogFile(logging.FileHandler):
    """A log file that ends with its first failure instead of printing a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.stop()
        _warn_of_log(self.baseFilename, error)

    def stop(self) -> None:
        """Close the file, whatever of it is lost, and take no more lines."""
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):  # what could not be written before cannot be now
            self.close()


def _warn_of_log(path: str, error: OSError) -> None:
    logger.warning("%s: cannot be written; the run goes on without: %s", path, explain_failure(error))


@contextmanager
def record_profile(run_folder: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Yield what has to be called after each step; `steps` steps from the fourth are traced to profile/.

    `steps-A-B.pt.trace.json.gz` opens in https://ui.perfetto.dev and in TensorBoard's profile plugin;
    `operators.txt` lists the operations by their own time. A, B count this start's steps from 1. Recorded
    steps are slower; the others are not.
    """
    if not steps:
        yield lambda: None
        return
    first = WAIT + WARM_UP + 1
    path = run_folder / PROFILE_FOLDER / f"steps-{first}-{first + steps - 1}.pt.trace.json.gz"

    def write(recorded: profile) -> None:
        try:
            _write_trace(recorded, path)
            logger.info("traced %d steps: %s", steps, path)
        except (OSError, RuntimeError) as error:  # a trace is not worth the end of a run
            logger.warning("%s: the trace cannot be written: %s", path, " ".join(str(error).split()))

    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    plan = schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1)
    activities = [ProfilerActivity.CPU, *cuda]
    with profile(activities=activities, schedule=plan, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step


def _write_trace(recorded: profile, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}")  # its ending makes the profiler compress it
    recorded.export_chrome_trace(str(partial))
    partial.replace(path)
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=order, row_limit=30)
    write_atomically(path.parent / "operators.txt", table + "\n")
