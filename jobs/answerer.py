"""A model as packages for benchmarks see it: a function from an image to one score and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from eval.predict.windows import Segment, segment_in_windows, to_tensor
from eval.sets.frames import read_picture
from eval.submissions.picture import BenchmarkImage, PictureAnswer, answer_evidence
from jobs.evaluate_options import choose_device
from jobs.evaluation_key import hash_checkpoint
from jobs.model_source import ANY_WINDOW, load_own_model, parse_model_file
from models.segmenter import make_segment, require_readable
from models.weights.checkpoint import load_segmenter
from shards.errors import InputError
from shards.files import hash_file
from shards.schema import NUM_CLASSES

Answer = Callable[[UInt8[np.ndarray, "H W 3"]], PictureAnswer]


@dataclass(frozen=True)
class Answerer:
    """A model, which may not be loaded yet."""

    name: str
    """Where it is read from."""
    fingerprint: str
    """Of what its answers depend on."""
    load: Callable[[], Answer]


def answer_by_checkpoint(
    checkpoint: Path, score: str, device: str, precision: Literal["float32", "bf16"], windows_at_once: int
) -> Answerer:
    """Let a checkpoint answer.

    Raises:
        InputError: on `load`: it is broken or has not what the score reads, or there is no such device.
    """

    def load() -> Answer:
        where = choose_device(device)
        model = load_segmenter(checkpoint).to(where)
        require_readable(model, (score,), f"--score: {checkpoint}")
        segment = make_segment(model, where, precision, (score,))
        return _answer_by(segment, model.image_size, score, windows_at_once)

    return Answerer(str(checkpoint), hash_checkpoint(checkpoint), load)


def answer_by_file(model_file: str, score: str, first: BenchmarkImage, *, needs_classes: bool) -> Answerer:
    """Let a user's own model answer; runs its code.

    Args:
        first: the picture it is asked about to learn what it answers.
        needs_classes: whether the benchmark wants predicted classes too.

    Raises:
        InputError: it is no such model, or does not answer what is needed.
    """
    segment = load_own_model(model_file)
    offer = segment.probe(read_picture(first.image, first.overlay))
    segment.choose_scores(offer, (score,), "--score")
    if needs_classes and offer.num_classes != NUM_CLASSES:
        raise InputError(
            f"--to: the benchmark wants the {NUM_CLASSES} classes of Cityscapes too; {model_file} answers "
            f"logits of {offer.num_classes}"
        )
    content = hash_file(parse_model_file(model_file)[0])
    answer = _answer_by(segment, ANY_WINDOW, score, 1)
    return Answerer(model_file, f"{content} {offer.fingerprint}", lambda: answer)


def _answer_by(segment: Segment, window: tuple[int, int], score: str, windows_at_once: int) -> Answer:
    def answer(image: UInt8[np.ndarray, "H W 3"]) -> PictureAnswer:
        return answer_evidence(segment_in_windows(to_tensor(image), segment, window, windows_at_once), score)

    return answer
