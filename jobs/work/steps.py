"""Steps of a chain of programs: each is a process of its own, as a user would start it."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.cores import share_cores
from shards.output import make_folder

logger = logging.getLogger(__name__)


def link_sets(folder: Path, *places: Path) -> None:
    """Put links to the folders in `places` into one folder, so that one evaluation reads all of them."""
    make_folder(folder)
    for found in sorted(inner for place in places for inner in place.iterdir() if inner.is_dir()):
        if not (link := folder / found.name).is_symlink():
            link.symlink_to(found.resolve())


def list_words(settings: Mapping[str, Any]) -> Iterator[object]:
    """List settings by name as the words of a command line."""
    for name, value in settings.items():
        yield from (f"--{name}", *(value if isinstance(value, list) else [value]))


def run_job(job: str, *arguments: object, **how: Any) -> None:
    """Run `python -m jobs.JOB` as its own process; leave with its exit code if it fails."""
    with running(job, *arguments, **how):
        pass


@contextlib.contextmanager
def running(job: str, *arguments: object, ranks: int = 1, stdout: int | None = None) -> Iterator[None]:
    """Run a job, of one or several ranks, beside what is done meanwhile, and wait for its end."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks] if ranks > 1 else []
    words = [str(word) for word in (*launcher, "-m", f"jobs.{job}", *arguments)]
    logger.info("\n$ python %s", shlex.join(words))
    process = subprocess.Popen([sys.executable, *words], stdout=stdout, env=os.environ | share_cores(ranks))
    try:
        yield
        code = process.wait()
    except BaseException:  # Ctrl-C reaches both of us, SIGTERM perhaps only this one
        process.terminate()
        process.wait()
        raise
    if code:
        sys.exit(code)
