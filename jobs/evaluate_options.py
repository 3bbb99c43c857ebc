"""What an evaluation is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from eval.predict.scores import DEFAULT_SCORES
from jobs.launched import device_of_rank
from models.weights.checkpoint import run_of
from shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score a checkpoint on the anomaly test sets that are present."""

    checkpoint: Path | None = None
    """A run folder, whose newest checkpoint is taken; RUN/best; a checkpoint folder; or weights of another
    origin: a file of tue-mps/eomt, a Hugging Face folder of EoMT, an ERFNet `.pth` (`jobs.doctor checkpoint`
    tells). Where a checkpoint has averaged weights (ema.decay), they are read; its model.safetensors, given
    as a file, has the others."""
    model_file: str = ""
    """In place of --checkpoint: your own model, as FILE.py:FUNCTION (FUNCTION is build where it is left out).
    It runs your code. See docs/own-models.md."""
    score_maps: Path | None = None
    """In place of --checkpoint: folder with score maps (.npy, .hdf5 or 16-bit .png), one folder per test set,
    one file per image of the same stem. --scores may name the score."""
    map_range: tuple[float, float] = (0.0, 1.0)
    """Scores that 0 and 65535 stand for in the PNG files of --score_maps."""
    datasets: Path
    """Folder that holds the test sets (RoadAnomaly21, RoadObsticle21, FS_LostFound_full, fs_static,
    RoadAnomaly), each with images/ and labels_masks/."""
    out: Path
    """New or empty folder for results.json, .csv, .md, .tex, per_image.csv, report.html (one page
    with everything), pictures, and sketches for paired tests. What is finished is kept in OUT/cells: the same
    command goes on where it was killed."""
    earlier: Literal["continue", "replace", "ignore"] = "continue"
    """What to do with what an earlier evaluation left in --out. continue: take what has the same weights,
    data and settings, compute the rest, and refuse where finished results would be lost; replace: the same,
    but replace finished results; ignore: take nothing, compute all anew, and replace."""
    sets: Path | None = None
    """YAML file that describes test sets of your own below --datasets; see `eval/sets/benchmarks.py`."""
    cache: Path | None = None
    """New or empty folder to save the network's predictions to, for `jobs.temperature`; 26 MB per frame of
    2048 x 1024 and a mask model."""
    cityscapes: Path | None = None
    """Folder written by `jobs.prepare cityscapes`; its val split gives the mIoU, which is missing without."""
    scores: tuple[str, ...] = DEFAULT_SCORES
    """Which anomaly scores: MSP, MaxLogit, MaxEntropy, RbA, Energy of any network; MaskEnergy, EAM of EoMT;
    MinDistance of class head isomax; UNO of a trained outlier class."""
    protocol: tuple[str, ...] = ("native",)
    """How images, windows, ground truth and metrics are treated, stated below every table: one or more of
    native, course-512, smiyc, fishyscapes and rba. Those that differ in the reading only share one forward
    pass."""
    components: bool = True
    """Compute component metrics (sIoU, PPV, F1*) too; needs 4 more bytes of disk per pixel and score."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    name: str = ""
    """Model's name in the tables; empty takes the run's folder name."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the network; scores are computed in float32 either way."""
    compile: bool = False
    """Run the network through torch.compile: the same results to rounding; minutes more at the start."""
    limit: int | None = None
    """Take the first frames of each set only, for a quick look."""
    task: str = ""
    """I/N: score every N-th image only, from the I-th on (counted from 0), as one of N processes that share
    --out and know nothing of each other; `slurm`: the place in a SLURM array. Whichever is last measures and
    writes: the files of a single process."""
    windows_at_once: int = 4
    """Windows per forward pass; lower it where memory is short."""
    pictures: int = 3
    """Frames of each set in its picture; 0 draws none."""

    def __post_init__(self) -> None:
        self._check_source()
        for name, lowest in (("limit", 1), ("windows_at_once", 1), ("pictures", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"--{name}: got {value}; at least {lowest}")

    def _check_source(self) -> None:
        given = [name for name in ("checkpoint", "model_file", "score_maps") if getattr(self, name)]
        if len(given) != 1:
            told = ", ".join(f"--{name}" for name in given) or "none of them"
            raise InputError(f"one of --checkpoint, --model_file and --score_maps is needed; got {told}")
        if given != ["checkpoint"]:
            for name, default in (("cache", None), ("compile", False), ("precision", "float32")):
                if getattr(self, name) != default:
                    raise InputError(f"--{name}: is for --checkpoint; got --{given[0]}")
        if given == ["score_maps"] and self.cityscapes is not None:
            raise InputError("--cityscapes: mIoU needs a model; score maps predict no classes")
        if not self.map_range[0] < self.map_range[1]:
            raise InputError(f"--map_range: got {self.map_range}; the first must be smaller")


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device, or it is not on this machine.
    """
    if name == "auto":
        return device_of_rank()
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"--device: got {name!r}; allowed are auto, cpu, cuda and cuda:N")
    present = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= present:
        raise InputError(f"--device {name}: this machine has {present} CUDA devices")
    return torch.device(name)


def model_name(options: EvaluateOptions, checkpoint: Path) -> str:
    """Return `--name`, or the name of the run that the checkpoint belongs to; a limited run says so."""
    of_run = run_of(checkpoint) or checkpoint.resolve().name
    limited = f" (first {options.limit} frames)" if options.limit else ""
    return (options.name or of_run) + limited
