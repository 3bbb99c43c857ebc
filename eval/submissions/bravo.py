"""BRAVO: predicted classes and a confidence per image, in the folders of the images.

    bravo_{ACDC,SMIYC,outofcontext,synflare,synobjs,synrain}/.../{stem}_pred.png   8 bits, train ids 0..18
    bravo_{ACDC,SMIYC,outofcontext,synflare,synobjs,synrain}/.../{stem}_conf.png   16 bits, 65535 = sure

This is the raw tree. What is uploaded is made from it by the benchmark's own `encode_submission`, which keeps
the pixels that its sampling file names.

Confidence c in [0, 1] is stored as min(floor(65536 c), 65535). c is 1 - s for scores s in [0, 1]: with MSP of
logits and NormalizedMSP of a mask model the probability of the predicted class, whose calibration BRAVO
measures. Of other scores it is 1 / (1 + exp(s)), an order without meaning as a probability.

Source: README and `bravo_toolkit` of valeoai/bravo_challenge at 0521eca and 3ab6566 (2024).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt16

from eval.predict.strips import PixelPrediction
from eval.sets.frames import IMAGE_SUFFIXES
from eval.submissions.benchmark import Benchmark, BenchmarkImage, Stored
from shards.errors import InputError
from shards.picture import GREY, GREY16, decode_numbers
from shards.schema import NUM_CLASSES
from shards.source import list_visible

SUBSETS = ("ACDC", "SMIYC", "outofcontext", "synflare", "synobjs", "synrain")
NUM_IMAGES = 3901
"""Images of all subsets: half of the 7802 files that BRAVO's README counts in a submission."""
OF_EVIDENCE = {"MSP": "NormalizedMSP", "MaxEntropy": "NormalizedEntropy"}
"""What a mask model answers in the place of scores of softmax(L), which is no probability of evidence."""
UNIT_SCORES = (*OF_EVIDENCE, *OF_EVIDENCE.values(), "EAM")
"""Scores in [0, 1], or nearly so."""


def _find_pictures(root: Path, _parts: Sequence[str] = ()) -> tuple[BenchmarkImage, ...]:
    """List the images of all subsets below `root`, which must differ in more than their suffix."""
    found: dict[str, BenchmarkImage] = {}
    for subset in SUBSETS:
        part = f"bravo_{subset}"
        for path in list_visible(root / part, "**/*"):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            key = path.relative_to(root).with_suffix("").as_posix()
            if key in found:
                raise InputError(f"{path}: two images of one name; the other is {found[key].image.name}")
            found[key] = BenchmarkImage(part, key, path)
    return tuple(found.values())


def confidence(score: str, values: Float32[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """Turn a score into a confidence of 16 bits: the lower, the more anomalous."""
    exact = values.astype(np.float64)
    if score in UNIT_SCORES:
        sure = np.clip(1 - exact, 0, 1)
    else:
        half = np.exp(-np.abs(exact)) / (1 + np.exp(-np.abs(exact)))  # in (0, 1/2], never overflows
        sure = np.where(exact > 0, half, 1 - half)
    return np.minimum(np.floor(sure * 65536), 65535).astype(np.uint16)


def _encode(score: str, found: PixelPrediction) -> tuple[bytes, ...]:
    pictures = (found.classes, confidence(score, found.scores[score]))
    return tuple(cv2.imencode(".png", picture)[1].tobytes() for picture in pictures)


def _decode(contents: Sequence[bytes], names: Sequence[str]) -> Stored:
    files = zip(contents, names, (GREY, GREY16), strict=True)
    classes, sure = (decode_numbers(content, name, (kind,)) for content, name, kind in files)
    if classes.max() >= NUM_CLASSES:
        raise InputError(f"{names[0]}: class {classes.max()}; allowed are 0 to {NUM_CLASSES - 1}")
    return Stored(65535 - sure, classes)


BRAVO = Benchmark(
    name="bravo",
    expects=", ".join(f"bravo_{subset}" for subset in SUBSETS),
    find_pictures=_find_pictures,
    files=("{key}_pred.png", "{key}_conf.png"),
    file_pattern=re.compile(rf"(?P<key>bravo_(?:{'|'.join(SUBSETS)})/.+)_(?:pred|conf)\.png"),
    encode=_encode,
    decode=_decode,
)
