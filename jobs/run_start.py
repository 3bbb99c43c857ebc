"""The start of a run: afresh, or from its newest checkpoint, with the settings, batch and samples it had."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from accelerate import Accelerator

from jobs.config_file import flat_settings, read_config
from jobs.finetune_config import FinetuneConfig
from jobs.provenance import PROVENANCE_NAME, require_same_data
from jobs.run_lock import is_barely_begun
from shards.errors import InputError
from shards.staging import require_free
from shards.stream import Stream
from trainer.checkpoint import newest_checkpoint
from trainer.loop import TrainState

logger = logging.getLogger(__name__)

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
