"""The head and the end of a benchmark's report, and the memory and clocks it is measured by."""

from __future__ import annotations

import datetime
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def describe_machine(threads: int, modules: Iterable[Any]) -> str:
    """Return date, processor, threads and versions as one line."""
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.date.today()}; {processor_name()}, {os.cpu_count()} cores, {threads} thread(s) used; "
        f"load average {load} (1, 5 and 15 minutes; other work counts); "
        f"Python {platform.python_version()}, {versions}"
    )


def publish(lines: Iterable[str], out: Path | None) -> None:
    """Print a report of Markdown lines, and write it to `out` as well."""
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if out is not None:
        out.write_text(text, encoding="utf-8")


def processor_name() -> str:
    """Return the name that the processor gives itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def read_clocks(synchronize: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the clock and of the processor, once the device has done what it was given."""
    synchronize()
    return time.perf_counter(), time.process_time()


def measure_peak(run: Callable[[], object]) -> int:
    """Return by how many bytes the resident size rises while `run` runs; Linux only.

    Peak counters of the system would include what came before.
    """
    before = peak = _resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
