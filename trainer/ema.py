"""An exponential moving average of what trains, beside the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights.files import read_metadata, read_weight_file, write_weight_file
from models.weights.fit import compare_weights
from models.weights.formats import AVERAGE_NAME
from shards.errors import InputError
from trainer.sections import EmaConfig
from trainer.sharding import is_sharded

_UPDATES = "updates"


class WeightAverage:
    """Averages parameters: after step t, average = d · average + (1 - d) · parameter.

    d is the decay; with warm-up min(decay, (1 + t) / (10 + t)), t = 1 at the first step, so that initial
    weights are soon forgotten. The average starts as the parameters are. Frozen parameters have none: theirs
    would be they themselves.

    Source: the moving average and its warm-up of TensorFlow's `tf.train.ExponentialMovingAverage`
    (`num_updates`); without warm-up `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn`.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        """Start from what trains in `model`, prepared and unwrapped; with decay 0 all methods do nothing."""
        kept = model.named_parameters() if config.decay else ()
        self._parameters = {name: p for name, p in kept if p.requires_grad}
        if any(map(is_sharded, self._parameters.values())):
            raise InputError("ema.decay: no average is kept of weights that FSDP shares out; set it to 0")
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._config = config
        self.updates = 0
        """Steps taken."""

    def __bool__(self) -> bool:
        return bool(self._averages)

    def update(self) -> None:
        """Take the parameters of one more step in."""
        if self:
            self.updates += 1
            parameters = [p.detach() for p in self._parameters.values()]
            torch._foreach_lerp_(list(self._averages.values()), parameters, 1 - self.decay())

    def decay(self) -> float:
        """Return d of the latest update."""
        limit = (1 + self.updates) / (10 + self.updates) if self._config.warmup else 1.0
        return min(self._config.decay, limit)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averages for its weights; afterwards they are what they were, to the bit."""
        before = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self._averages)
        try:
            yield
        finally:
            self._fill(before)

    def save(self, folder: Path) -> None:
        """Write the averages into a checkpoint that is being written; nothing where there are none."""
        if self:
            write_weight_file(self._averages, folder / AVERAGE_NAME, {_UPDATES: str(self.updates)})

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; an InputError says what is wrong with its averages."""
        if not self:
            return
        path = folder / AVERAGE_NAME
        saved = read_weight_file(path)
        compare_weights(self._averages, saved).require(saved, str(path))
        updates = read_metadata(path).get(_UPDATES, "")
        if not (updates.isascii() and updates.isdigit()):
            raise InputError(f"{path}: {_UPDATES} is {updates!r:.80}; a number of steps is needed")
        self.updates = int(updates[:18])
        for name, average in self._averages.items():
            average.copy_(saved[name])

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
