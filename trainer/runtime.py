"""The process around a run: accelerator, and the wish to stop."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import nn

from shards.errors import InputError
from trainer.deadline import Deadline

Precision = Literal["float32", "bf16", "fp16"]


def make_accelerator(precision: Precision, run_folder: Path) -> Accelerator:
    """Build the Accelerator for this process and check that the ranks found each other.

    Gradient accumulation is left to the loop, which knows the totals of a whole step. Without CUDA
    everything runs on the CPU, several processes over gloo.

    Raises:
        InputError: the launcher announced more processes than joined (two silent trainings), or the machine
            lacks the precision.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "loop.precision: fp16 needs a GPU, which this machine lacks; allowed are float32 and bf16"
        )
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # seven lines per checkpoint otherwise
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no" if precision == "float32" else precision,
            log_with="tensorboard",
            project_config=ProjectConfiguration(project_dir=str(run_folder), logging_dir=str(run_folder)),
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:  # an incomplete rendezvous, or a precision this machine lacks
        raise InputError(f"launch of {announced} processes in {precision}: {error}") from None
    if accelerator.num_processes != announced:
        raise InputError(
            f"the launcher announced {announced} processes, but {accelerator.num_processes} found each "
            f"other; on CPU, use torchrun, or `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu`"
        )
    return accelerator


def compile_model(model: nn.Module, device: torch.device, setting: str) -> None:
    """Let `torch.compile` replace the model's forward pass, in place: the names of its weights stay.

    Results stay the same to rounding. The first step, and the first of each new shape, takes minutes for a
    large model.

    Args:
        setting: name of the option, for the message.

    Raises:
        InputError: this platform cannot compile, for lack of a C++ compiler or Triton most likely.
    """
    try:  # on something small: where it fails, the reader should not have waited for the model
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # each backend raises its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{setting}: torch.compile does not work on this platform: {reason}") from None
    model.compile()


class StopSignal:
    """Notices SIGTERM, SIGUSR1 and the end of the time, so that a job that must leave saves first.

    A second signal ends the process at once. Use as a context manager; the handlers are put back after.
    """

    def __init__(self, accelerator: Accelerator, deadline: Deadline) -> None:
        self._accelerator = accelerator
        self._deadline = deadline
        self._asked = False
        self.reason = ""
        """Why the run stops; the same on all ranks."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Ask all ranks whether any of them must stop; all get the same answer."""
        flags = torch.tensor([float(self._asked), float(self._deadline.is_near())])
        if self._accelerator.num_processes > 1:
            flags = self._accelerator.reduce(flags.to(self._accelerator.device), reduction="sum")
        asked, late = (flag > 0 for flag in flags.tolist())
        self.reason = "asked to stop" if asked else "time limit" if late else ""
        return bool(self.reason)

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked = True
