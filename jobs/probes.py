"""The frames of a validation set that are shown at every validation, always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from eval.answers import answer_pixels
from eval.pictures import choose_exhibits, draw_grid, shrink_exhibit
from eval.pool import NORMAL, VOID
from eval.windows import Segment, segment_in_windows
from shards.reader import ShardReader
from shards.scene import decode_scene
from shards.schema import VOID_ID


def draw_scenes(
    reader: ShardReader,
    num_frames: int,
    num_probes: int,
    segment: Segment,
    window: tuple[int, int],
    scores: Sequence[str],
    step: int,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw `num_probes` of the first `num_frames` scenes, with their true and predicted classes and scores.

    Args:
        segment: the network, built for `scores`.
        window: its input size (h, w).
        step: for the title.
    """
    exhibits = []
    for index in sorted(choose_exhibits(num_frames, num_probes)):
        scene = decode_scene(reader, index)
        evidence = segment_in_windows(torch.from_numpy(scene.image).permute(2, 0, 1), segment, window)
        answers = answer_pixels(evidence, scores)
        target = np.where(scene.label == VOID_ID, VOID, NORMAL).astype(np.uint8)
        exhibits.append(
            shrink_exhibit(scene.key, scene.image, target, answers.prediction, answers.scores, scene.label)
        )
    return draw_grid(f"validation scenes at step {step}", exhibits)
