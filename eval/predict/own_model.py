"""A user's own model: a Python file whose function answers logits, scores, or both for an image.

    def build():                                   # called once
        network = ...
        def predict(image):                        # uint8 (H, W, 3), R G B
            return network(image)                  # float (C, H, W): logits, from which scores are computed
        return predict

In place of logits it may return a mapping from names to maps, float (H, W), higher = more anomalous; its key
`logits` stands for logits. Arrays and tensors are both understood; see docs/own-models.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.predict.score_names import DEFAULT_SCORES, NEEDS
from eval.predict.scores import SCORES
from eval.predict.windows import ModelSource, resize_image, to_tensor
from shards.errors import InputError
from shards.files import hash_file, require_name
from shards.schema import CITYSCAPES, unnamed_classes

LOGITS = "logits"
MapOrTensor = np.ndarray | Tensor
OwnModel = Callable[[UInt8[np.ndarray, "H W 3"]], MapOrTensor | Mapping[str, MapOrTensor]]
"""An image, R G B, to what the model says of it: logits, Float (C, H, W), in the order of Cityscapes' train
ids where there are 19; or maps by name, each Float (H, W), higher = more anomalous, and logits among them
under the name `logits`."""


class OwnPredictor:
    """A user's model as an `eval.predict.windows.Predictor`, its answers checked."""

    sees = "images as they are, seen as the user's own model does"
    has_evidence = False

    def __init__(self, model: OwnModel, where: str) -> None:
        """Wrap a model; `where` names it in messages."""
        self._model, self._where = model, where
        self.scores: tuple[str, ...] = ()
        """Names of the scores that are measured."""
        self.num_classes = 0
        """Classes of its logits; 0: it returns none."""
        self.classes = CITYSCAPES
        """Their names, where there are as many; whoever knows others sets them."""

    def choose_scores(
        self, image: UInt8[np.ndarray, "H W 3"], asked: tuple[str, ...], setting: str = "--scores"
    ) -> str:
        """Ask the model about an image, and settle which scores are measured; return a hash of its answer.

        An InputError says that it is no `OwnModel`, or does not give a score that is asked for.

        Args:
            asked: names of scores; the default is all that the model's answers suffice for.
            setting: the scores', for messages.
        """
        logits, maps = self._ask(image)
        if computed := [name for name in maps if name in SCORES]:
            given = f"answers a score {computed[0]}, which is computed here from logits"
            raise InputError(f"{self._where}: {given}; give it another name")
        if logits is not None and len(logits) < 2:
            raise InputError(f"{self._where}: logits are of one class; scores compare two or more")
        self.num_classes = 0 if logits is None else len(logits)
        self.classes = unnamed_classes(self.num_classes or len(CITYSCAPES))
        of_logits = [name for name in SCORES if not NEEDS[name]]
        known = (*(of_logits if self.num_classes else ()), *maps)
        if asked == DEFAULT_SCORES:
            asked = (*(DEFAULT_SCORES if self.num_classes else ()), *maps)
        if unknown := [name for name in asked if name not in known]:
            given = ", ".join(known)
            raise InputError(f"{setting}: got {unknown[0]!r}; what {self._where} answers gives {given}")
        self.scores = asked
        parts = [*maps.values()] if logits is None else [logits, *maps.values()]
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], scale: float = 1.0) -> Float[Tensor, "N H W"]:
        """Return logits, if any, and behind them the model's own maps among the chosen scores.

        At another `scale` the model gets a resized image, and its answers are resized back bilinearly.
        """
        if scale != 1:
            size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
            found = self(resize_image(to_tensor(image), size).permute(1, 2, 0).numpy())
            return F.interpolate(found[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0]
        logits, maps = self._ask(np.ascontiguousarray(image))
        wanted = [name for name in self.scores if name not in SCORES]
        if missing := [name for name in wanted if name not in maps]:
            raise InputError(f"{self._where}: answers no {missing[0]} for one image, but did for the first")
        if logits is None and len(wanted) < len(self.scores):
            raise InputError(f"{self._where}: answers no logits for one image, but did for the first")
        parts = [] if logits is None else [logits]
        return torch.cat([*parts, *(maps[name][None] for name in wanted)])

    @torch.no_grad()
    def _ask(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Tensor | None, dict[str, Tensor]]:
        answer: Any = self._model(image)
        named = answer if isinstance(answer, Mapping) else {LOGITS: answer}
        if not named:
            raise InputError(f"{self._where}: answers an empty mapping; expected maps by name, or logits")
        for name in named:
            require_name(str(name), f"{self._where}: score")
        maps = {str(name): self._read(str(name), value, image.shape[:2]) for name, value in named.items()}
        return maps.pop(LOGITS, None), maps

    def _read(self, name: str, value: Any, size: tuple[int, ...]) -> Tensor:
        if not isinstance(value, np.ndarray | Tensor):
            raise InputError(f"{self._where}: {name} is {type(value).__name__}; expected an array or tensor")
        is_float = value.dtype.kind == "f" if isinstance(value, np.ndarray) else value.is_floating_point()
        num_axes, shape, (height, width) = 3 if name == LOGITS else 2, tuple(value.shape), size
        if not is_float or len(shape) != num_axes or shape[-2:] != (height, width):
            form = f"(C, {height}, {width})" if num_axes == 3 else f"({height}, {width})"
            given = f"{name} is {value.dtype} of shape {shape}; expected floating-point {form}"
            raise InputError(f"{self._where}: {given} for an image of {width} x {height}")
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.astype(np.float32))
        return value.detach().float().cpu()


def parse_model_file(text: str) -> tuple[Path, str]:
    """Split FILE.py:FUNCTION, of a Python file that must be there."""
    match = re.fullmatch(r"(?P<file>.+\.py)(?::(?P<function>\w+))?", text)
    if match is None or not Path(match["file"]).is_file():
        raise InputError(f"--model_file {text}: no such Python file; expected FILE.py or FILE.py:FUNCTION")
    return Path(match["file"]), match["function"] or "build"


def load_own_model(text: str) -> OwnPredictor:
    """Run a user's Python file and call its function. What the file itself does wrong keeps its traceback."""
    path, function = parse_model_file(text)
    name = f"own_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and pickle expect
    sys.path.insert(0, str(path.resolve().parent))  # for modules beside it
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        there = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise InputError(f"--model_file {text}: no function {function} in it; there are {there}")
    model = build()
    if not callable(model):
        expected = "expected a function from an image to logits or scores"
        raise InputError(f"--model_file {text}: {function}() returns {type(model).__name__}; {expected}")
    return OwnPredictor(model, text)


def open_own_model(
    text: str, first: UInt8[np.ndarray, "H W 3"], scores: tuple[str, ...], setting: str = "--scores"
) -> tuple[ModelSource, int]:
    """Load FILE.py:FUNCTION; return the model and the number of classes of its logits (0: it answers none).

    Its fingerprint covers the file and what it answers for the image `first`, which changes with its weights,
    wherever they lie. `scores` and `setting` are those of `OwnPredictor.choose_scores`.
    """
    predictor = load_own_model(text)
    answer = predictor.choose_scores(first, scores, setting)
    content = f"{hash_file(parse_model_file(text)[0])} {answer}"
    return ModelSource(text, content, predictor.scores, lambda: predictor), predictor.num_classes
