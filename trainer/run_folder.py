"""The run folder: start or resume, lock, provenance, and card."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from models.weights.run_files import CONFIG_NAME, FINISHED_NAME, LOCK_NAME, PROVENANCE_NAME, newest_checkpoint
from shards.errors import InputError
from shards.files import (
    LockTaken,
    hash_file,
    hold_lock,
    read_json,
    remove_partials,
    this_process,
    to_json,
    write_atomically,
)
from shards.manifest import MANIFEST_NAME
from shards.output import require_free
from shards.settings import ROOT, flat_settings, read_config, write_config
from shards.stream import Stream
from trainer.checkpoint import TrainState
from trainer.collective import writing
from trainer.config import MAY_CHANGE, MEASURED_ON, FinetuneConfig

logger = logging.getLogger(__name__)

WAIT_S = 10.0
"""Loader workers outlive a training that was killed by some five seconds, and hold its lock meanwhile."""
LOCKS_NOTHING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
PACKAGES = ("torch", "accelerate", "timm", "numpy", "opencv-python", "webdataset", "eomt-anomaly")


@dataclass(frozen=True)
class Start:
    """A run as planned, before anything is written."""

    folder: Path
    config: FinetuneConfig
    checkpoint: Path | None
    """Checkpoint to continue from; None: from the beginning."""
    is_there: bool
    """True where the folder held a run already."""


def plan_start(config: FinetuneConfig, *, resume: bool) -> Start:
    """Decide whether a run starts or continues from its newest checkpoint, with its own settings and data."""
    folder = Path(config.out) / config.name
    path = folder / CONFIG_NAME
    config = dataclasses.replace(config, loss=config.loss.completed())
    if not path.exists():
        if not _is_barely_begun(folder):
            require_free(folder, "out/name")
        if resume:
            logger.info("%s: nothing to resume, starting", folder)
        return Start(folder, config, None, is_there=False)
    if not resume:
        ended = f"has finished; {train_on(folder)}, --name alone starts another"
        there = "is already there; --resume continues it, --name starts another"
        raise InputError(f"{folder}: a run {ended if (folder / FINISHED_NAME).exists() else there}")
    saved = read_config(FinetuneConfig, path)
    config = _as_started(config, saved)
    _require_same_settings(config, saved, path)
    _require_same_data(config, folder / PROVENANCE_NAME)
    checkpoint = newest_checkpoint(folder)
    source = checkpoint.name if checkpoint else "the start, nothing was saved"
    logger.info("%s: resuming from %s", folder, source)
    return Start(folder, config, checkpoint, is_there=True)


def train_on(folder: Path) -> str:
    """Name the way to train on from a run with other settings, such as more steps."""
    return f"--name NEW --model.weights {shlex.quote(str(folder))} trains on from its weights"


def _as_started(config: FinetuneConfig, saved: FinetuneConfig) -> FinetuneConfig:
    """Fill what the model's settings leave out, and a micro-batch that was fitted, as the run has them."""
    config = dataclasses.replace(config, model=config.model.completed(saved.model))
    per_process = config.data.batch_size * config.loop.grad_accum
    if config.loop.fit_memory and per_process == saved.data.batch_size * saved.loop.grad_accum:
        data = dataclasses.replace(config.data, batch_size=saved.data.batch_size)
        loop = dataclasses.replace(config.loop, grad_accum=saved.loop.grad_accum)
        config = dataclasses.replace(config, data=data, loop=loop)
    return config


def _require_same_settings(config: FinetuneConfig, saved: FinetuneConfig, path: Path) -> None:
    before, now = flat_settings(saved), flat_settings(config)
    fixed = MEASURED_ON if config.validation.select else ()
    for name in sorted(before.keys() | now.keys()):
        if (name not in MAY_CHANGE or name in fixed) and before.get(name) != now.get(name):
            differ = f"{name} is {now.get(name)} but {path} has {before.get(name)}"
            keeps = f"a resumed run keeps its settings; {train_on(path.parent)}"
            raise InputError(f"--resume: {differ}; {keeps}")


def _require_same_data(config: FinetuneConfig, path: Path) -> None:
    """Check that manifests are those that the run's latest start recorded in its provenance."""
    recorded = [entry["manifests"] for entry in _read_entries(path)][-1:] or [{}]
    for folder, now in _hash_manifests(config).items():
        if recorded[0].get(folder, now) != now:
            changed = f"{folder}/{MANIFEST_NAME} has changed since the run was started ({path})"
            raise InputError(f"--resume: {changed}; a resumed run keeps its data")


def _is_barely_begun(folder: Path) -> bool:
    """Say whether a run was killed there before it had written anything whole beside its lock."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return LOCK_NAME in names and all(name == LOCK_NAME or name.startswith(".config.") for name in names)


@contextlib.contextmanager
def hold_run(start: Start, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a run's folder, which exists, until the main rank is gone, however it goes.

    All ranks call it; all leave if another run holds the lock, or wrote there since `plan_start`.
    """
    with contextlib.ExitStack() as held:
        with writing(accelerator, f"{start.folder}: cannot be written"):
            if accelerator.is_main_process:
                _take_lock(start.folder, held)
                is_there = (start.folder / CONFIG_NAME).exists()
                if (is_there, newest_checkpoint(start.folder)) != (start.is_there, start.checkpoint):
                    taken = "another run wrote there while this one was starting"
                    raise InputError(f"{start.folder}: {taken}; start it again")
        yield


def _take_lock(folder: Path, held: contextlib.ExitStack) -> None:
    try:
        held.enter_context(hold_lock(folder / LOCK_NAME, wait_s=WAIT_S, owner=this_process()))
    except LockTaken as error:
        taken = f"another run is writing there: {error}"
        raise InputError(f"{folder}: {taken}; wait for its end, or --name starts another") from None
    except OSError as error:
        if error.errno not in LOCKS_NOTHING:
            raise
        logger.warning("%s: this file system has no locks; see that no second run is started there", folder)


def require_same_samples(state: TrainState, stream: Stream, global_batch: int, num_processes: int) -> None:
    """Check that the sequence of samples goes on, in steps of the same size, and note which it is."""
    if state.samples_seen != state.batches_seen * global_batch:
        took = f"the run took {state.samples_seen // state.batches_seen} samples per step"
        factors = f"data.batch_size x loop.grad_accum x {num_processes} processes"
        raise InputError(f"--resume: {took}, this start would take {global_batch} ({factors})")
    reader = stream.dataset.reader
    if state.data and state.data != reader.fingerprint():
        others = "not those that the run was started with, or in another order; a resumed run keeps its data"
        raise InputError(f"--resume: data.shards hold {len(reader)} samples, but {others}")
    state.data = reader.fingerprint()


def begin_folder(folder: Path, config: FinetuneConfig, num_processes: int) -> str:
    """Write the complete settings, and one more entry of provenance; what a kill left of them is removed.

    Returns words for how the run is shared out, as its log has them.
    """
    for name in (CONFIG_NAME, PROVENANCE_NAME, FINISHED_NAME):
        remove_partials(folder, name)
    write_config(config, folder / CONFIG_NAME)
    path = folder / PROVENANCE_NAME
    entry = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "seed": config.seed,
        "num_processes": num_processes,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "manifests": _hash_manifests(config),
    }
    earlier = _read_entries(path)
    write_atomically(path, to_json([*earlier, entry], indent=2))
    (folder / FINISHED_NAME).unlink(missing_ok=True)
    shared = f"{num_processes} processes, {config.data.batch_size} x {config.loop.grad_accum} images each"
    before = earlier[-1].get("num_processes", num_processes) if earlier else num_processes
    changed = f", {before} before: the same samples in each step, sums in another order"
    return shared + (changed if before != num_processes else "")


def end_folder(folder: Path, state: TrainState) -> None:
    """Note that a run has come to its end."""
    end = {"step": state.step, "early": state.best.is_over, "best": state.best}
    write_atomically(folder / FINISHED_NAME, to_json(end))


def describe_run(folder: Path, facts: Sequence[str]) -> str:
    """Return a card, in Markdown, of a run's latest start, `facts` (such as what trains) and settings."""
    entry = _read_entries(folder / PROVENANCE_NAME)[-1]
    rows = {name: value for name, value in entry.items() if name not in ("platform", "packages", "manifests")}
    table = [f"| {name} | `{value}` |" for name, value in (rows | entry["packages"]).items()]
    settings = (folder / CONFIG_NAME).read_text(encoding="utf-8").splitlines()
    lines = ["| | |", "|---|---|", *table, "", *(f"- {fact}" for fact in facts), ""]
    return "\n".join([*lines, *(f"    {line}" for line in settings)]) + "\n"


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = read_json(list[dict[str, Any]], path) if path.is_file() else []
        if all(isinstance(entry["manifests"], dict) for entry in entries):
            return entries
    except (InputError, KeyError):
        pass
    raise InputError(f"{path}: is no provenance record; move it away to go on without")


def _git(*arguments: str) -> str | None:
    """Ask git about the code's own folder, without locks, which a kill would leave; None: no checkout.

    Installed, the code may lie in somebody else's checkout, whose state says nothing of it.
    """
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hash_manifests(config: FinetuneConfig) -> dict[str, str | None]:
    """Hash the manifest of each folder of shards that a run reads; None where there is none."""
    folders = [*config.data.shards, *([config.paste.bank] if config.paste.bank else [])]
    paths = {folder: Path(folder) / MANIFEST_NAME for folder in folders}
    return {folder: hash_file(path) if path.is_file() else None for folder, path in paths.items()}
