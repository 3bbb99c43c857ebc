"""Everything that changes a number besides the model: written beside each number, chosen by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One convention of evaluating; two numbers compare only under the same one."""

    name: str
    input_size: Literal["cover the window"]
    """What the network sees of an image: scaled, aspect ratio kept, until it covers the input window."""
    windows: Literal["sliding, evidence averaged"]
    """How windows make one image; see `eval/windows.py`."""
    ground_truth_size: Literal["native"]
    """Size at which pixels are compared: evidence is resized to it, not the other way round."""
    ap_rule: Literal["step sum"]
    """Area under precision over recall; see `eval/pixel.py`."""
    fpr_rule: Literal["first-at-least", "first-above", "interpolated"]
    """How FPR is read at 95 % TPR; see `eval/pixel.py`."""
    pooling: Literal["all pixels of the set"]
    """Over what one metric is computed."""
    images_without_anomaly: Literal["kept", "skipped"]
    """Whether an image without an anomalous pixel brings its normal pixels."""
    float_type: Literal["float32"]
    """In what scores are stored and compared: half precision makes ties, and ties move metrics."""

    def describe(self) -> str:
        """Return the footnote of a table."""
        return (
            f"protocol {self.name}: input scaled to {self.input_size}; windows {self.windows}; "
            f"ground truth at {self.ground_truth_size} size, void ignored; AuPRC by {self.ap_rule}; "
            f"FPR95 by rule {self.fpr_rule}; pooled over {self.pooling}, "
            f"images without anomaly {self.images_without_anomaly}; scores in {self.float_type}"
        )


PROTOCOLS: dict[str, Protocol] = {
    "native": Protocol(
        name="native",
        input_size="cover the window",
        windows="sliding, evidence averaged",
        ground_truth_size="native",
        ap_rule="step sum",
        fpr_rule="first-at-least",
        pooling="all pixels of the set",
        images_without_anomaly="kept",
        float_type="float32",
    ),
}


def get_protocol(name: str, setting: str = "--protocol") -> Protocol:
    """Look up a protocol.

    Raises:
        InputError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise InputError(f"{setting}: no protocol {name!r}; available: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
