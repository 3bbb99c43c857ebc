"""TensorBoard of a run, and other trackers that get its scalars and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from jaxtyping import Float64, UInt8
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from eval.metrics.binned import ImageCounts, ScoreDistribution
from models.adapt import adapter_norms
from models.eomt import EoMT
from shards.errors import InputError
from trainer.collective import explain_failure
from trainer.config import TrackingConfig
from trainer.sharding import whole

logger = logging.getLogger(__name__)

DESCRIPTIONS = {
    "Loss": "One loss term, unweighted, over the whole global batch.",
    "Loss/total": "Sum of all loss terms with their weights (`loss.weights`), over the whole global batch.",
    "Loss/lower_bound": "What this term cannot get below, with the queries as they are.",
    "Validation/miou": "Mean IoU of the validation scenes; a fraction.",
    "Validation/ap": "Average precision of the pasted objects by this score; a fraction.",
    "Validation/fpr95": "Share of normal pixels above the threshold that finds 95 % of the pasted ones.",
    "Validation/gap": "Median score of pasted pixels minus that of normal ones, in the score's unit.",
    "Validation/best": "The best value so far of the metric that `validation.select` declares.",
    "grad_norm": "Norm of the gradients of a parameter group, or of all, before clipping.",
    "lr": "Learning rate of a parameter group.",
    "lora": "Frobenius norm of what an adapter adds to its weight.",
    "speed/images_per_s": "Images per second since the point before, over all processes.",
    "speed/data_wait_share": "Share of that time in which the first process waited for data.",
    "memory": "Most memory so far, in GiB.",
    "data/errors": "Unreadable samples that others stood in for, since the start.",
    "skipped_steps": "Bad steps that were left out (`loop.skip_bad_steps`).",
    "pasted scenes": "Training scenes with pasted objects, and their labels.",
    "probes": "The same frames at every validation: image, truth, a map per score, predicted classes.",
    "precision_recall": "Precision over recall of the pasted objects, at up to 127 thresholds.",
    "scores": "Scores of all pixels of the pasted set.",
    "run": "Settings and origin of the run; a card for each start.",
}
"""What a card shows, by the beginning of its tag. TensorBoard sorts by letter, capitals first, and opens the
first two groups: Loss and Validation."""
PLUGINS = {"simple_value": "scalars", "image": "images", "histo": "histograms"}
"""Plugin of TensorBoard for a value that names none."""
TENSORBOARD, PROJECT = "tensorboard", "eomt-anomaly"
NAMED_BY = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
"""Tracker -> its option for the run's name; the others know it as the setting `run`."""
ONE_PICTURE = ("aim", "clearml")
"""Trackers that take a picture by its tag; the others take a list of them."""
MOST_POINTS = 127
"""Points of a curve; TensorBoard takes no more."""


def require_trackers(config: TrackingConfig) -> None:
    """Check that the package of every tracker is installed."""
    if missing := [name for name in config.trackers if name not in map(str, get_available_trackers())]:
        package = missing[0].replace("_", "-")
        raise InputError(f"tracking.log_with: {missing[0]} is not installed; pip install {package}")


def start_tracking(
    accelerator: Accelerator,
    config: TrackingConfig,
    settings: Mapping[str, str | int | float | bool],
    metrics: Sequence[str] = (),
    *,
    step: int = 0,
) -> None:
    """Open the trackers, and enter the run into TensorBoard's tab HPARAMS: settings, and tags of metrics.

    What an earlier start of the run has written of steps after `step` is shown no more by TensorBoard; for
    the other trackers each start is a run of its own.
    """
    if not accelerator.is_main_process:
        return
    run = Path(accelerator.logging_dir or "").absolute()
    for name in config.trackers:
        try:
            tracker = _make_tracker(name, run, step)
            tracker.start()
        except Exception as error:  # each package raises its own, such as that nobody has logged in
            if name == TENSORBOARD:
                raise
            raise InputError(f"tracking.log_with: {name} does not start: {_one_line(error)}") from None
        accelerator.trackers.append(tracker)
    experiment, start, _ = hparams(dict(settings), dict.fromkeys(metrics, 0.0))
    _show(accelerator, _add_descriptions)
    _show(accelerator, lambda board: board.file_writer.add_summary(experiment))
    given = {"run": run.name, **settings}
    _show(
        accelerator,
        lambda board: board.file_writer.add_summary(start),
        lambda tracker: tracker.store_init_configuration(given),
    )


def _make_tracker(name: str, run: Path, step: int) -> Any:
    """Make Accelerate's tracker of that name for a run's folder."""
    make: Any = LOGGER_TYPE_TO_CLASS[name]
    place = (str(run),) if make.requires_logging_directory else ()
    if name == TENSORBOARD:
        return make("", *place, purge_step=step + 1)
    return make(PROJECT, *place, **({NAMED_BY[name]: run.name} if name in NAMED_BY else {}))


def _add_descriptions(board: Any) -> None:
    """Have everything that is written to `board` carry the description of its tag, the first time."""
    add, described = board.file_writer.add_summary, set[str]()

    def add_described(summary: Any, *options: Any, **named: Any) -> None:
        for value in summary.value:
            if value.tag not in described:
                value.metadata.summary_description = describe_tag(value.tag)
                kind = PLUGINS.get(value.WhichOneof("value"), value.metadata.plugin_data.plugin_name)
                value.metadata.plugin_data.plugin_name = kind
                described.add(value.tag)
        add(summary, *options, **named)

    board.file_writer.add_summary = add_described


def describe_tag(tag: str) -> str:
    """Return the description of a card; empty for one that has none."""
    while tag and tag not in DESCRIPTIONS:
        tag = tag.rpartition("/")[0]
    return DESCRIPTIONS.get(tag, "")


def end_tracking(accelerator: Accelerator, *, has_ended: bool) -> None:
    """Close the trackers, and say in TensorBoard's tab HPARAMS whether the run has come to its end."""
    end = hparams({}, {})[2]
    _show(accelerator, lambda board: board.file_writer.add_summary(end) if has_ended else None)
    accelerator.end_training()


def show_scalars(accelerator: Accelerator, scalars: Mapping[str, float], step: int) -> None:
    """Show scalars by their tags."""

    def write(board: Any) -> None:
        for tag, value in scalars.items():
            board.add_scalar(tag, value, step)

    _show(accelerator, write, lambda tracker: tracker.log(dict(scalars), step=step))


def show_picture(accelerator: Accelerator, tag: str, picture: UInt8[np.ndarray, "H W 3"], step: int) -> None:
    """Show a picture (R, G, B), wherever pictures are taken."""

    def send(tracker: Any) -> None:
        if hasattr(tracker, "log_images"):
            tracker.log_images({tag: picture if tracker.name in ONE_PICTURE else [picture]}, step=step)

    _show(accelerator, lambda board: board.add_image(tag, picture, step, dataformats="HWC"), send)


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


def _show(
    accelerator: Accelerator, write: Callable[[Any], object], send: Callable[[Any], object] | None = None
) -> None:
    """Let the main rank write to TensorBoard's `SummaryWriter`, and send to the other trackers.

    A full disk ends TensorBoard's files, and any fault another tracker, but not the run. Checkpoints say by
    themselves if they fail.
    """
    for tracker in list(accelerator.trackers) if accelerator.is_main_process else ():
        try:
            if tracker.name == TENSORBOARD:
                write(tracker.writer)
                tracker.writer.flush()
            elif send is not None:
                send(tracker)
        except Exception as error:
            if tracker.name != TENSORBOARD:
                logger.warning("%s: the run goes on without it: %s", tracker.name, _one_line(error))
            elif isinstance(error, OSError):
                folder, why = Path(tracker.writer.get_logdir()), explain_failure(error)
                logger.warning("%s: cannot be written; the run goes on without TensorBoard: %s", folder, why)
            else:
                raise
            accelerator.trackers.remove(tracker)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
