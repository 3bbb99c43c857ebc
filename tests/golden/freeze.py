"""Freeze what a user sees of every program, and compare with it: `python -m tests.golden.freeze --work DIR`.

README.md beside this file says what is frozen, what is replaced before, and on which machine it holds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.golden.bench import Bench
from tests.golden.data_parts import make_losses, make_world
from tests.golden.evaluation_parts import make_collect, make_evaluate, make_temperature
from tests.golden.package_parts import make_export, make_submissions
from tests.golden.record import compare, describe_machine, read_record, write_record
from tests.golden.sweep_part import make_sweep
from tests.golden.text_parts import make_errors, make_help

PARTS: dict[str, Callable[[Bench], None]] = {
    "world": make_world,
    "losses": make_losses,
    "evaluate": make_evaluate,
    "temperature": make_temperature,
    "collect": make_collect,
    "submissions": make_submissions,
    "export": make_export,
    "help": make_help,
    "errors": make_errors,
    "sweep": make_sweep,
}
"""In the order in which they are made; later ones use what earlier ones leave."""


def main(arguments: Sequence[str]) -> int:
    """Run the parts asked for; return 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.freeze", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for all outputs; may be kept")
    parser.add_argument("--write", action="store_true", help="write the record instead of comparing with it")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    options = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in options.only]
    machine = read_record()[0]
    if options.write and len(parts) < len(PARTS) and machine not in ({}, describe_machine()):
        parser.error("the record is another machine's; --write it as a whole, without --only")
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work.resolve(), PARTS)
    for part in parts:
        started = time.monotonic()
        bench.make(part)
        print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
    if options.write:
        write_record(bench.findings, parts)
        print(f"written: {len(bench.findings.values)} artefacts")
        return 0
    return _report(bench, parts)


def _report(bench: Bench, parts: Sequence[str]) -> int:
    machine, now = read_record()[0], describe_machine()
    for name in sorted(machine.keys() | now.keys()):
        if machine.get(name) != now.get(name):
            print(f"note: {name} is {now.get(name)} here, and was {machine.get(name)} where this was written")
    told = compare(bench.findings, parts)
    print("\n".join(told) if told else f"no difference in {len(bench.findings.values)} artefacts")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
