"""A user's own model as evaluation sees it: one function from an image to logits, scores, or both.

    def build():                                   # called once
        network = ...
        def segment(image):                        # uint8 (H, W, 3), R G B
            return network(image)                  # float (C, H, W): logits, from which scores are computed
        return segment

In place of logits it may return a mapping from names to maps, float (H, W), higher = more anomalous; its key
`logits` stands for logits. Arrays and tensors are both understood; see docs/own-models.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.predict.scores import DEFAULT_SCORES, SCORES
from shards.errors import InputError

LOGITS = "logits"
MapOrTensor = np.ndarray | Tensor
OwnAnswer = MapOrTensor | Mapping[str, MapOrTensor]


@runtime_checkable
class OwnModel(Protocol):
    """An image, UInt8 (H, W, 3) in the order R, G, B, to what the model says of it.

    Logits, Float (C, H, W), in the order of Cityscapes' train ids where there are 19; or maps by name, each
    Float (H, W), higher = more anomalous, and logits among them under the name `logits`.
    """

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> OwnAnswer: ...


class Offer(NamedTuple):
    """What a model answers, as its first answer shows."""

    num_classes: int
    """0: no logits."""
    own: tuple[str, ...]
    """Names of its own scores."""
    fingerprint: str
    """SHA-256 of the answer."""


class OwnSegment:
    """Calls a user's model for whole images (`eval.predict.windows.WholeImages`)."""

    def __init__(self, model: OwnModel, where: str) -> None:
        """Wrap a model.

        Args:
            where: what it is, for messages.
        """
        self._model, self._where = model, where
        self._scores: tuple[str, ...] = ()

    def probe(self, image: UInt8[np.ndarray, "H W 3"]) -> Offer:
        """Ask the model once to learn what it answers.

        Raises:
            InputError: an answer of another kind than `OwnModel` describes.
        """
        logits, maps = self._ask(image)
        for name in maps:
            if name in SCORES:
                raise InputError(
                    f"{self._where}: answers a score {name}, which is computed here from logits; "
                    f"give it another name"
                )
        if logits is not None and len(logits) < 2:
            raise InputError(f"{self._where}: logits are of one class; scores compare two or more")
        parts = [*maps.values()] if logits is None else [logits, *maps.values()]
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
        return Offer(0 if logits is None else len(logits), tuple(maps), digest)

    def choose_scores(
        self, offer: Offer, asked: tuple[str, ...], setting: str = "--scores"
    ) -> tuple[str, ...]:
        """Settle which scores are measured; the default is all that the model's answers suffice for.

        Raises:
            InputError: one is asked for that they do not suffice for.
        """
        computed = tuple(SCORES) if offer.num_classes else ()
        if asked == DEFAULT_SCORES:
            asked = (*(DEFAULT_SCORES if offer.num_classes else ()), *offer.own)
        for name in asked:
            if name not in (*computed, *offer.own):
                known = ", ".join((*computed, *offer.own))
                raise InputError(f"{setting}: got {name!r}; what {self._where} answers gives {known}")
        self._scores = asked
        return asked

    def segment_image(self, image: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "C H W"]:
        """Return logits, if any, and behind them the model's own maps among the chosen scores.

        Raises:
            InputError: an answer is of another kind than the first one.
        """
        logits, maps = self._ask(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        wanted = [name for name in self._scores if name not in SCORES]
        if missing := [name for name in wanted if name not in maps]:
            raise InputError(f"{self._where}: answers no {missing[0]} for one image, but did for the first")
        if logits is None and len(wanted) < len(self._scores):
            raise InputError(f"{self._where}: answers no logits for one image, but did for the first")
        parts = [] if logits is None else [logits]
        return torch.cat([*parts, *(maps[name][None] for name in wanted)])

    @torch.no_grad()
    def _ask(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Tensor | None, dict[str, Tensor]]:
        answer: Any = self._model(image)
        named = answer if isinstance(answer, Mapping) else {LOGITS: answer}
        if not named:
            raise InputError(f"{self._where}: answers an empty mapping; expected maps by name, or logits")
        size = image.shape[:2]
        maps = {
            str(name): self._read(str(name), value, 3 if name == LOGITS else 2, size)
            for name, value in named.items()
        }
        return maps.pop(LOGITS, None), maps

    def _read(self, name: str, value: Any, num_axes: int, size: tuple[int, ...]) -> Tensor:
        if isinstance(value, np.ndarray):
            is_float = value.dtype.kind == "f"
        elif isinstance(value, Tensor):
            is_float = value.is_floating_point()
        else:
            raise InputError(f"{self._where}: {name} is {type(value).__name__}; expected an array or tensor")
        shape, (height, width) = tuple(value.shape), size
        if not is_float or len(shape) != num_axes or shape[-2:] != (height, width):
            form = f"(C, {height}, {width})" if num_axes == 3 else f"({height}, {width})"
            raise InputError(
                f"{self._where}: {name} is {value.dtype} of shape {shape}; expected floating-point {form} "
                f"for an image of {width} x {height}"
            )
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.astype(np.float32))
        return value.detach().float().cpu()
