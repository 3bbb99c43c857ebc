"""Settings of the programs that run a model over frames: which model, where, and as which of N processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from shards.errors import InputError
from shards.files import Location
from shards.settings import require_least
from slurm.status import parse_task

if TYPE_CHECKING:  # a help page loads no network
    from eval.predict.windows import ModelSource
    from eval.store import Worker


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model, and the process that runs it."""

    checkpoint: Path | None = None
    """A run folder, whose newest checkpoint is taken; RUN/best; a checkpoint folder; or weights of another
    origin: a file of tue-mps/eomt, a Hugging Face folder of EoMT, an ERFNet `.pth` (`jobs.doctor checkpoint`
    tells). Where a checkpoint has averaged weights (ema.decay), they are read; its model.safetensors, given
    as a file, has the others."""
    model_file: Location = ""
    """In place of --checkpoint: your own model, as FILE.py:FUNCTION (FUNCTION is build where it is left out).
    It runs your code. See docs/own-models.md."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the network; scores are computed in float32 either way."""
    compile: bool = False
    """Run the network through torch.compile: the same results to rounding; minutes more at the start."""
    windows_at_once: int = 4
    """Windows per forward pass; lower it where memory is short."""
    task: str = ""
    """I/N: score every N-th image only, from the I-th on (counted from 0), as one of N processes that share
    --out and know nothing of each other; `slurm`: the place in a SLURM array. Whichever is last writes what
    is made of all: the files of a single process."""
    sources: ClassVar[tuple[str, ...]] = ("checkpoint", "model_file")
    """Settings of which exactly one names the model."""

    def __post_init__(self) -> None:
        given = [name for name in self.sources if getattr(self, name)]
        if len(given) != 1:
            named = [f"--{name}" for name in self.sources]
            told = ", ".join(f"--{name}" for name in given) or "none of them"
            raise InputError(f"one of {', '.join(named[:-1])} and {named[-1]} is needed; got {told}")
        if given != ["checkpoint"]:
            for name, default in (("compile", False), ("precision", "float32")):
                if getattr(self, name) != default:
                    raise InputError(f"--{name}: is for --checkpoint; got --{given[0]}")
        require_least(self, windows_at_once=1)

    def find_source(self, scores: tuple[str, ...], setting: str) -> Path:
        """Return the checkpoint or the Python file, and check `scores` as far as names tell."""
        from eval.predict.own_model import parse_model_file
        from eval.predict.score_names import require_scores
        from models.weights.checkpoint import find_checkpoint

        if self.model_file:
            return parse_model_file(self.model_file)[0]
        require_scores(scores, setting)
        assert self.checkpoint is not None
        return find_checkpoint(self.checkpoint)

    def open_model(self, source: Path, score: str) -> ModelSource:
        """Open what `find_source` found for one score; a user's own model is asked about one picture."""
        import numpy as np

        from eval.predict.own_model import open_own_model
        from models.segmenter import choose_device, open_predictor

        if self.model_file:  # its answer tells its weights apart, whatever pictures it is to see
            any_picture = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), np.uint8)
            return open_own_model(self.model_file, any_picture, (score,), "--score")[0]
        device, limit = choose_device(self.device), self.windows_at_once
        return open_predictor(
            source,
            (score,),
            device,
            self.precision,
            windows_at_once=limit,
            compiled=self.compile,
            setting="--score",
        )


def join_task(given: str, worker: Worker) -> Worker:
    """Return the array task that `--task` names, or this rank."""
    from eval.store import Worker

    if not given:
        return worker
    if worker.count > 1:
        raise InputError(f"--task {given}: tasks are single processes; under torchrun leave it out")
    return Worker(*parse_task(given), is_task=True)
