"""Protocols: everything that changes a number besides the model, written beside it and chosen by name.

The presets follow what the evaluations of the field do, read from their code. `eval/metrics/measure.py`
carries them out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
    fpr_rule: Literal["first-at-least", "first-above", "nearest", "interpolated"]
    """Reading of FPR at 95 % TPR; see `eval/metrics/curve.py`."""
    pooling: Literal["all pixels of the set", "all pixels of the first 1300 images"]
    """Pixels that one metric is computed over."""
    images_without_anomaly: Literal["kept", "skipped"]
    """Whether an image without an anomalous pixel brings its normal pixels."""
    float_type: Literal["float32", "float16"]
    """Type of the compared scores: half precision makes ties, and ties move metrics."""
    flip: bool = False
    """Whether a score is the mean of the image's and its mirror image's."""
    scales: tuple[float, ...] = (1.0,)
    """Factors on the size at which a model sees an image; a score is the mean over them."""
    smooth: bool = False
    """Whether score maps are smoothed by a Gaussian of 7 x 7 pixels and sigma 1, as PEBAL and RPL publish."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) to which image and ground truth are brought before anything else; None: as they are."""
        return None if self.ground_truth_size == "native" else COURSE_SIZE

    @property
    def is_of_the_image(self) -> bool:
        """Whether a model sees the image as it is, and once."""
        return (self.size, self.flip, self.scales) == (None, False, (1.0,))

    @property
    def additions(self) -> str:
        """What its name adds to that of the same protocol without post-processing."""
        scales = "+scales-" + "-".join(f"{100 * scale:g}" for scale in self.scales)
        parts = ((self.flip, "+flip"), (self.scales != (1.0,), scales), (self.smooth, "+smooth"))
        return "".join(text for is_on, text in parts if is_on)

    @property
    def maps(self) -> str:
        """Name of the score maps that it compares, which protocols share."""
        return ("native" if self.size is None else "x".join(map(str, self.size))) + self.additions

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
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        views = "the image and its mirror image" if self.flip else "the image"
        smoothing = "smoothed by a Gaussian of 7 x 7 pixels and sigma 1" if self.smooth else "not smoothed"
        return (
            f"protocol {self.name}: images at {self.image_size}; "
            f"scores of {views} at scale {scales}, {smoothing}; "
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
        # PEBAL's and RPL's valid.py: blurred scores, pooled, and the threshold with TPR nearest to 95 %.
        # Their convolutional networks see whole images; ours may see windows.
        *(replace(_NATIVE, name=name, smooth=True, fpr_rule="nearest") for name in ("pebal", "rpl")),
        # Mask2Anomaly's anomaly_inference.py: the mean with the mirror image's scores, np.interp, images
        # without anomaly skipped. Neither its refinement by masks nor its input size is a part of this.
        replace(
            _NATIVE,
            name="mask2anomaly",
            flip=True,
            fpr_rule="interpolated",
            images_without_anomaly="skipped",
        ),
        # RbA's evaluate_ood.py: strictly more than 95 %, and no more than 1300 images.
        replace(
            _NATIVE,
            name="rba",
            fpr_rule="first-above",
            pooling="all pixels of the first 1300 images",
        ),
    )
}


ADDITIONS = "+flip, +scales-75-100-125 (percent) and +smooth"
"""What a name may have behind it, for messages."""


def get_protocol(name: str, setting: str = "--protocol") -> Protocol:
    """Look up a protocol, with what its name adds to it; an InputError names the available ones."""
    base, *additions = name.split("+")
    if base not in PROTOCOLS:
        available = f"available: {', '.join(PROTOCOLS)}, each with {ADDITIONS}"
        raise InputError(f"{setting}: no protocol {name!r}; {available}")
    added: dict[str, Any] = {}
    for addition in additions:
        kind, *percents = addition.split("-")
        is_scales = kind == "scales" and bool(percents)
        is_scales &= all(percent.isdecimal() and 25 <= int(percent) <= 400 for percent in percents)
        is_there = kind in added or getattr(PROTOCOLS[base], kind, None) != getattr(_NATIVE, kind, None)
        if is_there or not (is_scales or addition in ("flip", "smooth")):
            allowed = f"{base} may have {ADDITIONS} behind it, each once, and scales of 25 to 400"
            raise InputError(f"{setting}: {name!r}: got +{addition}; {allowed}")
        added[kind] = tuple(int(percent) / 100 for percent in percents) if is_scales else True
    return replace(PROTOCOLS[base], name=base + replace(_NATIVE, **added).additions, **added)


def find_protocol(name: str) -> Protocol | None:
    """Look up a protocol of a record; None: one that is not known here."""
    with contextlib.suppress(InputError):
        return get_protocol(name)
    return None


def get_protocols(names: Sequence[str]) -> tuple[Protocol, ...]:
    """Look up several protocols: at least one, each once."""
    protocols = tuple(get_protocol(name) for name in names)
    if not names or len({protocol.name for protocol in protocols}) < len(names):
        given = ", ".join(names) or "nothing"
        raise InputError(f"--protocol: got {given}; at least one, each once, of {', '.join(PROTOCOLS)}")
    return protocols
