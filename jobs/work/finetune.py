"""One fine-tuning: a run is opened, introduced, trained, ended."""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections.abc import Sequence

from jobs.preview_paste import draw_contact_sheet, paste_scenes
from models.weights.run_files import FINISHED_NAME
from shards.settings import flat_settings
from trainer.checkpoint import TrainState
from trainer.collective import writing
from trainer.config import FinetuneConfig
from trainer.loop import Run, train
from trainer.optim import explain_rates
from trainer.run import global_batch, open_run
from trainer.run_folder import begin_folder, describe_run, end_folder, train_on
from trainer.run_log import log_file, record_profile
from trainer.runtime import Deadline, StopSignal, find_end
from trainer.tracking import end_tracking, require_trackers, show_picture, show_text, start_tracking
from trainer.watchdog import Watchdog

logger = logging.getLogger(__name__)


COMPARED = ("seed", "optim.lr", "adapt.mode", "loss.classification", "loss.outlier", "loop.steps")
"""Settings that TensorBoard's tab HPARAMS shows of every run."""


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    started: float | None = None,
    stop: StopSignal | None = None,
) -> TrainState:
    """Run one fine-tuning; with `resume` from the newest checkpoint of the run's folder, if there is one.

    `started` is the Unix time from which `loop.time_limit` counts; None: now. Signals are noticed by `stop`;
    None: by one of its own. StopAsked is raised where the run is asked to leave before there is a step.
    """
    if stop is None:
        with StopSignal() as stop:
            return finetune(config, resume=resume, started=started, stop=stop)
    require_trackers(config.tracking)
    stop.deadline = Deadline(find_end(config.loop.time_limit, started or time.time()))
    given = list_given(config)
    with open_run(config, stop, resume=resume) as (run, config, explanation):
        accelerator, folder = run.accelerator, run.folder
        is_main = accelerator.is_main_process
        if (folder / FINISHED_NAME).exists() and run.state.has_ended(config.loop.steps):
            logger.info("%s: finished at step %d; %s", folder, run.state.step, train_on(folder))
            return run.state
        with writing(accelerator, f"{folder}: cannot be written"):
            shared = begin_folder(folder, config, accelerator.num_processes) if is_main else ""
            metrics = [*config.validation.tags(), "Loss/total"]
            start_tracking(accelerator, config.tracking, given, metrics, step=run.state.step)
        with log_file(folder / "log.txt" if is_main else None):
            _introduce(run, config, explanation, shared)
            state = _train(run, config, stop)
        has_ended = state.has_ended(config.loop.steps)
        if has_ended:
            with writing(accelerator, f"{folder}: cannot be written"):
                if is_main:
                    end_folder(folder, state)
        end_tracking(accelerator, has_ended=has_ended)
    return state


def list_given(config: FinetuneConfig) -> dict[str, str | int | float | bool]:
    """List the settings that runs are compared by: `COMPARED`, and those that are not their defaults."""
    defaults = flat_settings(FinetuneConfig(name=config.name, out=config.out))
    settings = flat_settings(config).items()
    return {name: value for name, value in settings if name in COMPARED or value != defaults.get(name)}


def _introduce(run: Run, config: FinetuneConfig, explanation: Sequence[str], shared: str) -> None:
    """Say in the log and in TensorBoard what is about to be trained."""
    accelerator, step = run.accelerator, run.state.step
    first = step + 1  # as of a later start from the same checkpoint, whose cards then replace these
    logger.info("%s: %s", run.folder, explanation[0])
    for line in explanation[1:]:
        logger.info("  %s", line)
    logger.info("from step %d to %d on %s", step, config.loop.steps, shared)
    rates = explain_rates(run.optimizer, config.optim, global_batch(config, accelerator))
    logger.info("%s", rates)
    if accelerator.is_main_process:
        show_text(accelerator, "run", describe_run(run.folder, [explanation[0], rates]), first)
        count = config.tracking.pasted_scenes if config.tracking.trackers else 0
        if step == 0 and count and config.paste.probability > 0:  # before an hour is spent on it
            scenes, classes = paste_scenes(config, count), config.model.class_table
            sheet = draw_contact_sheet(scenes, classes, columns=count)
            show_picture(accelerator, "pasted scenes", sheet, first)


def _train(run: Run, config: FinetuneConfig, stop: StopSignal) -> TrainState:
    stop.leave_if_asked(in_training=False)
    accelerator, first = run.accelerator, run.state.step
    traced = config.loop.profile if accelerator.is_main_process else 0
    name = f"process {accelerator.process_index} of {accelerator.num_processes} on {socket.gethostname()}"
    with (
        record_profile(run.folder, traced) as after_step,
        Watchdog(config.loop.hang_s, name, run.folder / "log.txt") as watchdog,
    ):
        run = dataclasses.replace(run, after_step=after_step, watchdog=watchdog)
        state = train(run, config.loop)
    if state.best.is_over:
        logger.info("ended early at step %d: %s", state.step, state.best.explain())
    elif not state.has_ended(config.loop.steps):
        saved = "saved at" if state.step > first else "nothing new was to save since"
        logger.info("%s: %s step %d; --resume continues", stop.reason, saved, state.step)
    return state
