"""Protocols: everything that changes a number besides the model, written beside it and chosen by name.

The presets follow what the evaluations of the field do, read from their code. `eval/metrics/measure.py`
carries them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shards.errors import InputError

COURSE_SIZE = (512, 1024)
MAX_IMAGES_RBA = 1300


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One convention of evaluating; two numbers compare only under the same one."""

    name: str
    image_size: Literal["native size", "512 x 1024 whatever the aspect ratio"]
    """Size of the image that a model is given, squashed bilinearly with a low-pass filter. What it does
    with it stands beside (`eval.report.record.Record.sees`)."""
    ground_truth_size: Literal["native", "512 x 1024 by nearest pixel"]
    """Size at which pixels are compared: class scores are resized to it, not the other way round."""
    ap_rule: Literal["step sum", "step sum over thresholds from 768 percentiles of each image"]
    """Area under precision over recall; see `eval/metrics/curve.py` and `measure.py`."""
    fpr_rule: Literal["first-at-least", "first-above", "interpolated"]
    """Reading of FPR at 95 % TPR; see `eval/metrics/curve.py`."""
    pooling: Literal["all pixels of the set", "all pixels of the first 1300 images"]
    """Pixels that one metric is computed over."""
    images_without_anomaly: Literal["kept", "skipped"]
    """Whether an image without an anomalous pixel brings its normal pixels."""
    float_type: Literal["float32", "float16"]
    """Type of the compared scores: half precision makes ties, and ties move metrics."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) to which image and ground truth are brought before anything else; None: as they are."""
        return None if self.ground_truth_size == "native" else COURSE_SIZE

    @property
    def most_images(self) -> int | None:
        """Number of images of a set that count; None: all."""
        return MAX_IMAGES_RBA if self.pooling == "all pixels of the first 1300 images" else None

    @property
    def is_binned(self) -> bool:
        """Whether metrics are read off the thresholds of each image."""
        return self.ap_rule != "step sum"

    def describe(self) -> str:
        """Return the footnote of a table."""
        return (
            f"protocol {self.name}: images at {self.image_size}; "
            f"ground truth at {self.ground_truth_size} size, void ignored; AuPRC by {self.ap_rule}; "
            f"FPR95 by rule {self.fpr_rule}; pooled over {self.pooling}, "
            f"images without anomaly {self.images_without_anomaly}; scores in {self.float_type}"
        )


_NATIVE = Protocol(
    name="native",
    image_size="native size",
    ground_truth_size="native",
    ap_rule="step sum",
    fpr_rule="first-at-least",
    pooling="all pixels of the set",
    images_without_anomaly="kept",
    float_type="float32",
)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _NATIVE,
        # The course's evalAnomaly.py: ERFNet's size, sklearn's AP, ood_metrics' np.interp.
        replace(
            _NATIVE,
            name="course-512",
            image_size="512 x 1024 whatever the aspect ratio",
            ground_truth_size="512 x 1024 by nearest pixel",
            fpr_rule="interpolated",
            images_without_anomaly="skipped",
        ),
        # road-anomaly-benchmark's PixBinaryClass, on the float16 maps of its submissions.
        replace(
            _NATIVE,
            name="smiyc",
            ap_rule="step sum over thresholds from 768 percentiles of each image",
            float_type="float16",
        ),
        # fishyscapes/eval.py: every pixel labelled 0 or 1, the first threshold that reaches 95 %.
        replace(_NATIVE, name="fishyscapes"),
        # RbA's evaluate_ood.py: strictly more than 95 %, and no more than 1300 images.
        replace(
            _NATIVE,
            name="rba",
            fpr_rule="first-above",
            pooling="all pixels of the first 1300 images",
        ),
    )
}


def get_protocol(name: str, setting: str = "--protocol") -> Protocol:
    """Look up a protocol; an InputError names the available ones."""
    if name not in PROTOCOLS:
        raise InputError(f"{setting}: no protocol {name!r}; available: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def get_protocols(names: Sequence[str], setting: str = "--protocol") -> tuple[Protocol, ...]:
    """Look up several protocols: at least one, each once."""
    if not names or len(set(names)) < len(names):
        given = ", ".join(names) or "nothing"
        raise InputError(f"{setting}: got {given}; at least one, each once, of {', '.join(PROTOCOLS)}")
    return tuple(get_protocol(name, setting) for name in names)
