"""The run folder: its lock, provenance, start or resume, and its card."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from shards.errors import InputError
from shards.files import LockTaken, hold_lock, require_free, this_process, write_atomically
from shards.manifest import MANIFEST_NAME
from shards.settings import flat_settings, read_config
from shards.stream import Stream
from trainer.checkpoint import newest_checkpoint
from trainer.collective import writing
from trainer.config import FinetuneConfig
from trainer.loop import TrainState

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"
WAIT_S = 10.0
"""Loader workers outlive a training that was killed by some five seconds, and hold its lock meanwhile."""
LOCKS_NOTHING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class RunLock:
    """The right to write into a run's folder, held by the main rank until it is gone, however it goes.

    Use as a context manager; it takes nothing before `take`.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._folder, self._accelerator = folder, accelerator
        self._held = contextlib.ExitStack()
        self._taken = False

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def take(self, check: Callable[[], None]) -> None:
        """Take the lock of a folder that exists; nothing happens if it is held already. All ranks call it.

        Args:
            check: run by the main rank once it has the lock: raises if the folder is not what it was when
                the run was planned.

        Raises:
            InputError: another run holds it, or `check` says so.
            StorageError: the lock file cannot be written.
        """
        if self._taken:
            return
        with writing(self._accelerator, f"{self._folder}: cannot be written"):
            if self._accelerator.is_main_process:
                self._lock()
                check()
        self._taken = True

    def _lock(self) -> None:
        path = self._folder / LOCK_NAME
        try:
            self._held.enter_context(hold_lock(path, wait_s=WAIT_S, owner=this_process()))
        except LockTaken as error:
            raise InputError(
                f"{self._folder}: another run is writing there: {error}; wait for its end, or --name "
                f"starts another"
            ) from None
        except OSError as error:
            if error.errno not in LOCKS_NOTHING:
                raise
            logger.warning(
                "%s: this file system has no locks; see that no second run is started there", self._folder
            )


def is_barely_begun(folder: Path) -> bool:
    """Say whether a run was killed there before it had written anything whole.

    That leaves its lock, and what `write_atomically` had not given its name yet.
    """
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return LOCK_NAME in names and all(name == LOCK_NAME or name.startswith(".config.") for name in names)


PROVENANCE_NAME = "provenance.json"
PACKAGES = ("torch", "accelerate", "timm", "numpy", "opencv-python", "webdataset", "eomt-anomaly")


def require_same_data(path: Path, data: Sequence[str]) -> None:
    """Check that a run which resumes reads the shards it was started with.

    Args:
        path: the run's provenance file; nothing is checked where it is missing.
        data: folders of shards.

    Raises:
        InputError: a manifest has changed, or the file is broken.
    """
    entries = _read_entries(path)
    recorded = entries[-1]["manifests"] if entries else {}
    for folder in data:
        now = _manifest_hash(Path(folder))
        if folder in recorded and recorded[folder] != now:
            raise InputError(
                f"--resume: {folder}/{MANIFEST_NAME} has changed since the run was started ({path}); "
                f"a resumed run keeps its data"
            )


def write_provenance(path: Path, *, seed: int, data: Sequence[str], num_processes: int) -> None:
    """Write what is needed to say, a year later, where a number came from.

    Args:
        path: the JSON file; an existing one (of a run that resumes) gets one more entry.
        data: folders of shards; the hash of each one's manifest is recorded.
        num_processes: training processes.
    """
    entries = _read_entries(path)
    entries.append(
        {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
            "commit": _git("rev-parse", "HEAD"),
            "uncommitted_changes": bool(_git("status", "--porcelain")),
            "seed": seed,
            "num_processes": num_processes,
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "manifests": {folder: _manifest_hash(Path(folder)) for folder in data},
        }
    )
    write_atomically(path, json.dumps(entries, indent=2) + "\n")


def _read_entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            dict(entry["manifests"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: is no provenance record; move it away to go on without") from None
    return entries


def _git(*arguments: str) -> str | None:
    """Ask git about the code's own folder; None where it is no checkout."""
    # without locks: a run that is killed meanwhile would leave one
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).resolve().parent), *arguments]
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


def _manifest_hash(folder: Path) -> str | None:
    manifest = folder / MANIFEST_NAME
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


MAY_CHANGE = (
    *("out", "name", "data.workers", "data.batch_size", "data.cache", "loop.grad_accum"),
    *("loop.activation_checkpointing", "loop.fit_memory", "loop.profile"),
    *("loop.log_every", "loop.eval_every", "loop.save_every", "loop.keep_checkpoints"),
    *("loop.time_limit", "loop.skip_bad_steps", "loop.sharding"),
    *("validation.shards", "validation.split", "validation.limit"),
    *("validation.pasted", "validation.scores", "validation.patience"),
    *("tracking.tensorboard", "tracking.pasted_scenes", "tracking.groups", "tracking.probes"),
    *("tracking.curves", "paste.cache_mb"),
)
"""Settings that a resumed run may change: they alter no weight, as long as the global batch stays."""
MEASURED_ON = ("validation.shards", "validation.split", "validation.limit", "validation.pasted")
"""Of these, what may not change where the best of several validations is chosen."""
CONFIG_NAME = "config.yaml"


def as_started(config: FinetuneConfig, path: Path) -> FinetuneConfig:
    """Fill what the model's settings leave out, and a micro-batch that was fitted, as the run has them."""
    if not path.exists():
        return config
    saved = read_config(FinetuneConfig, path)
    config = dataclasses.replace(config, model=config.model.completed(saved.model))
    per_process = config.data.batch_size * config.loop.grad_accum
    if config.loop.fit_memory and per_process == saved.data.batch_size * saved.loop.grad_accum:
        data = dataclasses.replace(config.data, batch_size=saved.data.batch_size)
        loop = dataclasses.replace(config.loop, grad_accum=saved.loop.grad_accum)
        config = dataclasses.replace(config, data=data, loop=loop)
    return config


def find_start(config: FinetuneConfig, folder: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from, or None for a run that starts.

    Raises:
        InputError: the folder is in use, or the run was started with other settings or data.
    """
    path = folder / CONFIG_NAME
    if not resume and path.exists():
        raise InputError(f"{folder}: a run is already there; --resume continues it, --name starts another")
    if not path.exists():
        if not is_barely_begun(folder):
            require_free(folder, "out/name")
        if resume:
            logger.info("%s: nothing to resume, starting", folder)
        return None
    _require_same_settings(config, path)
    require_same_data(folder / PROVENANCE_NAME, data_folders(config))
    checkpoint = newest_checkpoint(folder)
    logger.info(
        "%s: resuming from %s", folder, checkpoint.name if checkpoint else "the start, nothing was saved"
    )
    return checkpoint


def require_unchanged(folder: Path, checkpoint: Path | None, *, is_there: bool) -> None:
    """Check, now that nobody else writes there, that a folder is what it was when the run was planned.

    Args:
        checkpoint: as `find_start` returned it.
        is_there: whether the folder held a configuration then.

    Raises:
        InputError: it is not.
    """
    if (folder / CONFIG_NAME).exists() != is_there or newest_checkpoint(folder) != checkpoint:
        raise InputError(f"{folder}: another run wrote there while this one was starting; start it again")


def data_folders(config: FinetuneConfig) -> list[str]:
    """Name the shards that a run reads."""
    return [*config.data.shards, *([config.paste.bank] if config.paste.bank else [])]


def restore(accelerator: Accelerator, checkpoint: Path) -> None:
    """Load weights, optimizer, schedule and counters.

    Raises:
        InputError: a file of the checkpoint is missing or damaged.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # torch, safetensors, zipfile and pickle each raise their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"--resume: {checkpoint} cannot be restored; remove it to continue from the one before: {reason}"
        ) from None


def _require_same_settings(config: FinetuneConfig, path: Path) -> None:
    """Check that a run is resumed with the settings it was started with."""
    before, now = flat_settings(read_config(FinetuneConfig, path)), flat_settings(config)
    fixed = MEASURED_ON if config.validation.select else ()
    for name in sorted(before.keys() | now.keys()):
        if (name not in MAY_CHANGE or name in fixed) and before.get(name) != now.get(name):
            raise InputError(
                f"--resume: {name} is {now.get(name)} but {path} has {before.get(name)}; "
                f"a resumed run keeps its settings"
            )


def global_batch(config: FinetuneConfig, accelerator: Accelerator) -> int:
    """Return the images of one step, over all processes."""
    return config.data.batch_size * config.loop.grad_accum * accelerator.num_processes


def require_same_batch(config: FinetuneConfig, accelerator: Accelerator, state: TrainState) -> None:
    """Check that the number of processes keeps the global batch.

    Raises:
        InputError: it does not.
    """
    batch = global_batch(config, accelerator)
    if state.samples_seen != state.batches_seen * batch:
        raise InputError(
            f"--resume: the run took {state.samples_seen // state.batches_seen} samples per step, this start "
            f"would take {batch} (data.batch_size x loop.grad_accum x {accelerator.num_processes} "
            f"processes)"
        )


def require_same_samples(stream: Stream, state: TrainState) -> None:
    """Check that the sequence goes on that the run has begun, wherever its shards lie now; note its samples.

    Raises:
        InputError: it does not.
    """
    reader = stream.dataset.reader
    if state.data and state.data != reader.fingerprint():
        raise InputError(
            f"--resume: data.shards hold {len(reader)} samples, but not those that the run was started with, "
            f"or in another order; a resumed run keeps its data"
        )
    state.data = reader.fingerprint()


CARD_FIELDS = (
    "started",
    "command",
    "commit",
    "uncommitted_changes",
    "seed",
    "num_processes",
    "host",
    "python",
)


def describe_run(provenance: Path, config: Path, facts: list[str]) -> str:
    """Return a card from what the run's folder holds.

    Args:
        provenance: `provenance.json`; its latest entry is shown.
        config: `config.yaml`.
        facts: further lines, such as how many parameters train.
    """
    entry = json.loads(provenance.read_text(encoding="utf-8"))[-1]
    rows = [f"| {name} | `{entry[name]}` |" for name in CARD_FIELDS]
    rows += [f"| {name} | `{version}` |" for name, version in entry["packages"].items()]
    settings = "".join(f"    {line}\n" for line in config.read_text(encoding="utf-8").splitlines())
    said = "\n".join(f"- {fact}" for fact in facts)
    return "\n".join(["| | |", "|---|---|", *rows]) + f"\n\n{said}\n\n{settings}"
