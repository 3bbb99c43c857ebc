"""Programs in processes forked from one that has loaded torch: what `python -m` starts, without its imports.

The first start loads them, in a server that lives as long as the process that asks.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from shards.program import run_program
from slurm.launch import find_free_port, rank_variables

Main = Callable[[Sequence[str]], None]
"""A program as `run_program` takes it; a function of a module, which the forked process imports."""

PRELOADED = ["jobs.finetune", "jobs.work.finetune", "jobs.evaluate", "jobs.work.evaluate", "jobs.prepare"]
PRELOADED += ["torch.utils.tensorboard", "peft"]


def start_program(
    main: Main,
    arguments: Sequence[str],
    printed: Path,
    said: Path,
    variables: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a program on one thread, in the server's environment and `variables`.

    Its standard output is appended to the file `printed`, its standard error to `said`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    words = (main, list(arguments), printed, said, dict(variables or {}))
    process = context.Process(target=_be_program, args=words)
    process.start()
    return process


def start_ranks(main: Main, arguments: Sequence[str], folder: Path, ranks: int = 1) -> list[BaseProcess]:
    """Start a program as one process, or as several that find each other.

    Each writes into `folder`: printed-RANK.txt, its standard output, and said-RANK.txt, its standard error.
    """
    port = find_free_port()
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(ranks):
        printed, said = folder / f"printed-{rank}.txt", folder / f"said-{rank}.txt"
        variables = rank_variables(rank, ranks, port) if ranks > 1 else {}
        processes.append(start_program(main, arguments, printed, said, variables))
    return processes


def run_ranks(
    main: Main, arguments: Sequence[str], folder: Path, ranks: int = 1, *, patience_s: float = 300
) -> str:
    """Run what `start_ranks` starts to its end, and return what all ranks said on standard error.

    Raises:
        RuntimeError: one failed, or outlived the patience.
    """
    codes = join(start_ranks(main, arguments, folder, ranks), patience_s)
    said = read_said(folder)
    if any(codes):
        raise RuntimeError(f"{main.__module__}: exit codes {codes}: {said}")
    return said


def join(processes: Sequence[BaseProcess], patience_s: float) -> list[int]:
    """Wait for all, and return their exit codes; what outlives the patience is killed, as by a launcher."""
    deadline = time.monotonic() + patience_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def read_said(folder: Path) -> str:
    """Return what all ranks of `start_ranks` said on standard error, one after the other."""
    return "".join(path.read_text() for path in sorted(folder.glob("said-*.txt")))


def _be_program(
    main: Main, arguments: Sequence[str], printed: Path, said: Path, variables: Mapping[str, str]
) -> None:
    for stream, path in ((1, printed), (2, said)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update({"OMP_NUM_THREADS": "1", **variables})
    multiprocessing.set_start_method(None, force=True)  # its loader workers start as those of any program
    torch.set_num_threads(1)
    sys.argv = [main.__module__, *arguments]
    run_program(main)
