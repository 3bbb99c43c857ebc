"""What TensorBoard shows beside scalars: pictures, curves, histograms, a card, a tab that compares runs.

On ranks other than the first, and without TensorBoard, nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float64, UInt8
from torch.utils.tensorboard.summary import hparams

from eval.binned import ImageCounts
from eval.distribution import ScoreDistribution

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
    true = counts.positives.sum(axis=0, dtype=np.float64)[::-1].cumsum()
    false = counts.negatives.sum(axis=0, dtype=np.float64)[::-1].cumsum()
    wanted = np.linspace(1 / MOST_POINTS, 1, MOST_POINTS) * true[-1]
    at = np.unique(np.searchsorted(true, wanted * (1 - 1e-12)))[::-1]
    tp, fp = true[at], false[at]
    return np.stack([tp, fp, false[-1] - fp, true[-1] - tp, tp / (tp + fp), tp / true[-1]])


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
