"""Fit an outlier head to an EoMT and labelled scenes, in one pass and without any outlier.

python -m jobs.fit_head --checkpoint RUN --shards data/cityscapes --out RUN/fitted
python -m jobs.evaluate --checkpoint RUN/fitted --datasets Validation_Dataset --out RUN/fitted/eval

Under `torchrun --nproc_per_node N -m jobs.fit_head ...` N processes share the scenes, and so do array tasks
with `--task I/N`. Each group of scenes becomes a file in .OUT.parts, complete or absent, and the files are
added up in one order: a fit that was killed goes on, and every number of processes gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError
from shards.files import Location
from shards.program import run_program
from shards.settings import parse_options, require_least


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Fit an outlier head to an EoMT and labelled scenes."""

    checkpoint: Path
    """A run or checkpoint folder, or weights of another origin (`jobs.doctor checkpoint` tells)."""
    shards: tuple[Location, ...]
    """Folders that `jobs.prepare cityscapes` wrote, or patterns of other shards."""
    out: Path
    """New or empty folder for outlier_head.safetensors, which jobs.evaluate reads as a checkpoint."""
    split: str = "train"
    """Split of the shards."""
    blocks: tuple[int, ...] = ()
    """Blocks whose tokens are fitted, counted from 0, joined. Empty: the last."""
    bank: int = 10_000
    """Most tokens that are kept for neighbours, as many of each class, drawn at random."""
    shrinkage: float = 0.001
    """Share of the mean variance in the covariances, in [0, 1]."""
    limit: int = 0
    """Most scenes; 0: all."""
    seed: int = 0
    """Of the tokens that are kept."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    task: str = ""
    """I/N: share of this process among N that know nothing of each other, or slurm. Once all are done, the
    same command without it writes the head."""

    def __post_init__(self) -> None:
        if not 0 <= self.shrinkage <= 1:
            raise InputError(f"--shrinkage: got {self.shrinkage}; 0 to 1 are allowed")
        require_least(self, bank=1, limit=0, seed=0)


def main(arguments: Sequence[str]) -> None:
    """Fit a head from the command line and say what was written."""
    options: FitOptions = parse_options(FitOptions, arguments, program="jobs.fit_head")
    from jobs.work.fit_head import fit_with_others

    print(fit_with_others(options), end="")


if __name__ == "__main__":
    run_program(main)
