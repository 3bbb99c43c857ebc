"""Machine, clocks, memory, turns and report of a benchmark.

Imports nothing of ours: `upstream.py` reads it from among packages that have our packages' names.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What every benchmark is asked."""

    out: Path | None = None
    """File to write the report to as well."""

    def publish(self, title: str, lines: Iterable[str]) -> None:
        """Print a report of Markdown lines below its title, and write it to `out` as well."""
        text = "\n".join([f"# {title}", "", *lines]) + "\n"
        print(text, end="")
        if self.out is not None:
            self.out.write_text(text, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class ThreadedOptions(ReportOptions):
    """What a benchmark is asked that may use several threads."""

    threads: int = 1
    """Threads that each side may use."""


def describe_machine(threads: int, modules: Iterable[Any]) -> str:
    """Return date, processor, threads and versions as one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    processor = names[0] if names else platform.processor() or platform.machine()
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.date.today()}; {processor}, {os.cpu_count()} cores, {threads} thread(s) used; "
        f"load average {load} (1, 5 and 15 minutes; other work counts); "
        f"Python {platform.python_version()}, {versions}"
    )


def table(header: str, rows: Iterable[Sequence[object]], text_columns: int = 1) -> list[str]:
    """Return a Markdown table below an empty line; behind its `text_columns`, all is set to the right."""
    count = header.count("|") + 1
    rules = "|".join("---" if i < text_columns else "---:" for i in range(count))
    return ["", f"| {header} |", f"|{rules}|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def time_in_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, calls: Mapping[str, int]
) -> dict[str, float]:
    """Return the mean processor seconds per call of each side; a first round is not counted.

    In turns, so that what else the machine does slows all sides; processor time, so that it disturbs less.
    The mean, because it is what a worker delivers: calls with and without object, jitter or mirroring cost
    different amounts. A side that returns a float measured itself, in another process or less than the whole
    call. `calls` are those of each side in one turn.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            for _ in range(calls[name]):
                began = time.process_time()
                result = run()
                seconds = result if isinstance(result, float) else time.process_time() - began
                if turn:
                    times[name].append(seconds)
    return {name: statistics.mean(values) for name, values in times.items()}


def read_clocks(synchronize: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the clock and of the processor, once the device has done what it was given."""
    synchronize()
    return time.perf_counter(), time.process_time()


def measure_peak(run: Callable[[], object], *, kind: str = "VmRSS") -> int:
    """Return by how many bytes the memory of this process rises while `run` runs; Linux only.

    Peak counters of the system would include what came before. `kind` is a line of `/proc/self/status`:
    VmRSS is what is resident, RssAnon what is this process's alone; pages of a mapped file are the system's
    to drop.
    """
    before = peak = _memory_bytes(kind)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _memory_bytes(kind))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def _memory_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


def command_upstream(
    task: str, upstream: Path, folder: Path, threads: int, request: Mapping[str, object]
) -> list[str]:
    """Write a request to tue-mps/eomt's code into `folder`; return the command that answers it there."""
    (folder / "request.json").write_text(json.dumps(request))
    script = Path(__file__).with_name("upstream.py")
    return [sys.executable, str(script), task, str(upstream.resolve()), str(folder), str(threads)]


def upstream_commit(folder: Path) -> str:
    """Return the commit that upstream's folder is at, where git knows."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    found = ""
    if (folder / ".git").exists():  # else git would answer for a repository around it
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found or "of an unknown commit (no git folder)"
