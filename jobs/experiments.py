"""The study of all methods: a baseline, what each makes of it, a choice on validation data, and test numbers.

    python -m jobs.experiments --out experiments                 # on the drawn world
    python -m jobs.experiments --out real --data REAL            # on real data, with ERFNet beside it

One baseline is trained, and fine-tuned with each method and seed by a local sweep. Run again, it goes on
where it stopped. Methods and scores are chosen on PastedVal: val frames with objects pasted of photographs
that no run pastes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from jobs.work import small_cityscapes, small_world
from jobs.work.small_world import SMOKE, Scale
from jobs.work.steps import link_sets
from jobs.work.study import METHODS, Study
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, make_folder, require_free
from shards.program import run_program
from shards.settings import parse_options, read_settings

SEED = 0
"""Of the drawn world and of its baseline."""


@dataclass(frozen=True, kw_only=True)
class ExperimentsOptions:
    """Compare all methods, on the drawn world (half an hour) or on real data (by estimate four hours)."""

    out: Path
    """New or empty folder, or that of the same experiments, which are continued."""
    data: Path | None = None
    """Real data, only read: a folder with Validation_Dataset/, cityscapes_256/unpack.py, coco/ and weights/.
    Without it the drawn world."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the fine-tunings, at least two, each once; the baseline has seed 0."""
    methods: tuple[str, ...] = tuple(METHODS)
    """What the baseline is fine-tuned with; `control` is always among them."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of every EoMT. bf16 takes half the time on processors with AMX, and much more on others."""
    at_once: int = 2
    """Fine-tunings side by side."""
    smoke: bool = False
    """Only check that the chain holds together; the numbers mean nothing then."""

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < max(len(self.seeds), 2):
            given = " ".join(map(str, self.seeds))
            raise InputError(f"--seeds: got {given or 'none'}; at least two are needed, each once")
        if any(not 0 <= seed < 2**32 for seed in self.seeds):
            raise InputError(f"--seeds: got {min(self.seeds)}..{max(self.seeds)}; allowed are 0..{2**32 - 1}")

    @property
    def scale(self) -> Scale:
        """Size of the drawn world."""
        return SMOKE if self.smoke else Scale()


def main(arguments: Sequence[str]) -> None:
    """Run the experiments from the command line."""
    options: ExperimentsOptions = parse_options(ExperimentsOptions, arguments, program="jobs.experiments")
    study = plan(options)
    with claimed(options.out):
        _require_same_experiments(options)
        tables = _prepare(study, options)
        study.run()
        report = study.render(tables)
        write_atomically(options.out / "results.md", report)
    print(report, end="")


def plan(options: ExperimentsOptions) -> Study:
    """Return what is to be run; an InputError names data that is missing or a method that is unknown."""
    if options.data:
        study = small_cityscapes.plan_study(options.out, options.data, options.precision, options.smoke)
    else:
        study = small_world.plan_study(options.out, SEED, options.scale, options.precision)
    at_once, seeds, methods = options.at_once, options.seeds, options.methods
    return dataclasses.replace(study, methods=methods, seeds=seeds, at_once=at_once)


def _prepare(study: Study, options: ExperimentsOptions) -> Mapping[str, Path]:
    """Make the data of a study; return tables of what is measured beside it, by title."""
    if not options.data:
        test_sets = small_world.make_world(study, SEED, options.scale)
        link_sets(study.sets, study.paste_validation(), test_sets)
        return {}
    test_sets = small_cityscapes.prepare_data(study, options.data, options.smoke)
    link_sets(study.sets, study.paste_validation(), test_sets)
    return small_cityscapes.evaluate_erfnet(study, options.data)


def _require_same_experiments(options: ExperimentsOptions) -> None:
    """Take a new folder, or one of the same experiments; seeds and methods may have been added."""
    marker = options.out / "experiments.yaml"
    given = {"data": str(options.data.absolute()) if options.data else None, "smoke": options.smoke}
    if not marker.is_file():
        require_free(options.out)
        make_folder(options.out)
        write_atomically(marker, yaml.safe_dump(given))
    elif (held := read_settings(marker)) != given:
        name = next(name for name in given if held.get(name) != given[name])
        raise InputError(f"--out {options.out}: holds experiments with --{name} {held.get(name)}")


if __name__ == "__main__":
    run_program(main)
