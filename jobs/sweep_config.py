"""The sweep file: which runs, with what resources."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.settings import read_config
from slurm.resources import Resources
from slurm.tasks import TASKS_NAME


@dataclass(frozen=True, kw_only=True)
class EvaluationStage:
    """What `jobs.evaluate` does with each run that is through."""

    datasets: str = ""
    """Folder of the test sets; empty: the runs are not evaluated."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of jobs.evaluate, such as cityscapes: data/cityscapes."""
    resources: Resources = field(default_factory=Resources)
    """Of each evaluation, which is one process."""

    def __post_init__(self) -> None:
        if self.resources.num_ranks != 1:
            raise InputError(
                f"evaluation.resources: {self.resources.num_ranks} processes, but an evaluation is one; "
                f"nodes: 1 and ranks_per_node: 1 are needed"
            )


@dataclass(frozen=True, kw_only=True)
class PreparationStage:
    """Shards written by many tasks instead of one: `jobs.prepare` as an array."""

    arguments: tuple[str, ...] = ()
    """Words behind `jobs.prepare`, such as [cityscapes, --root, downloads, --out, data/cityscapes]; empty:
    this is a sweep of fine-tunings."""
    tasks: int = 8
    """Into how many tasks the work is cut. The shards do not depend on it."""

    def __post_init__(self) -> None:
        if not 1 <= self.tasks <= 10_000:
            raise InputError(f"preparation.tasks must be in 1..10000, got {self.tasks}")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid of fine-tunings, their evaluations and one table: `python -m jobs.submit SWEEP.yaml`."""

    name: str
    """Name of the sweep, of its folder and of its jobs."""
    out: str = "sweeps"
    """Folder that holds sweeps. Every machine of the cluster must see it under this name."""
    config: str = ""
    """Configuration of jobs.finetune that every cell starts from."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that every cell has instead of those in `config`, by dotted name."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Dotted setting: list of its values; every combination is a cell."""
    cells: tuple[dict[str, Any], ...] = ()
    """Settings that go together; each entry is combined with the whole grid; its key `name` labels it."""
    seeds: tuple[int, ...] = (0,)
    """Each combination runs once with each; the table shows mean and spread over them."""
    max_starts_without_progress: int = 3
    """A cell that started so often from one and the same checkpoint is given up."""
    resources: Resources = field(default_factory=Resources)
    """Of each fine-tuning, or of each task of a preparation."""
    evaluation: EvaluationStage = field(default_factory=EvaluationStage)
    collect_resources: Resources = field(default_factory=Resources)
    """Of the job that writes the table."""
    preparation: PreparationStage = field(default_factory=PreparationStage)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith((".", "-")) or "\n" in self.name:
            raise InputError(f"name: got {self.name!r}; a folder name without / and leading dot is needed")
        if self.max_starts_without_progress < 1:
            raise InputError(
                f"max_starts_without_progress must be at least 1, got {self.max_starts_without_progress}"
            )
        if bool(self.config) == bool(self.preparation.arguments):
            raise InputError("config and preparation.arguments: exactly one of them is needed")
        for where, settings in (("overrides", self.overrides), ("grid", self.grid)):
            for setting in ("out", "name"):
                if setting in settings:
                    raise InputError(f"{where}.{setting}: the sweep names its runs itself")

    @property
    def folder(self) -> Path:
        """Where the sweep lives; absolute."""
        return (Path(self.out) / self.name).absolute()


def find_sweep(path: Path) -> Path:
    """Return the folder of a sweep, given that folder or the sweep file.

    Raises:
        InputError: nothing was submitted there.
    """
    folder = read_config(SweepConfig, path).folder if path.suffix in (".yaml", ".yml") else path.absolute()
    if not (folder / TASKS_NAME).is_file():
        raise InputError(f"{path}: no sweep is in {folder} ({TASKS_NAME} is missing); jobs.submit makes one")
    return folder
