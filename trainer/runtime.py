"""The process of a run: its launch and Accelerator, and its end by a signal or a time limit."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, parse_flag_from_env, reduce
from torch import distributed

from models.config import Precision
from shards.cores import THREADS, count_cores
from shards.errors import InputError
from shards.rendezvous import meet, read_launch
from trainer.config import STOPPED
from trainer.sections import LoopConfig, parse_limit

OTHER_ENGINES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SLURM_END = "SLURM_JOB_END_TIME"
"""Unix time at which Slurm ends the job; set by Slurm since 22.05."""
UNMEASURED_SAVE_S = 120.0
"""Time allowed for the first save; a tenth of the time limit if that is less."""


def require_launch(loop: LoopConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Check what a launcher says, before hours are spent: ranks, and the settings of Accelerate.

    Those come from variables or from the file of `accelerate config`. What this suite decides itself must not
    be asked for otherwise there: Accelerate would follow it behind our back, or nobody would.
    """
    read_launch(environment)
    precision = "no" if loop.precision == "float32" else loop.precision
    asked = {
        "GRADIENT_ACCUMULATION_STEPS": (("1", "auto", str(loop.grad_accum)), "loop.grad_accum"),
        "MIXED_PRECISION": (("no", precision), "loop.precision"),
        "GRADIENT_CLIPPING": (("none", "auto", str(loop.max_grad_norm)), "loop.max_grad_norm"),
        "DYNAMO_BACKEND": (("no",), "loop.compile"),
        "TORCH_DEVICE": ((), "CUDA_VISIBLE_DEVICES"),
        **{f"USE_{name}": (("no", "false", "0"), "loop.sharding") for name in OTHER_ENGINES},
    }
    for name, (allowed, setting) in asked.items():
        value = environment.get(f"ACCELERATE_{name}", "")
        if value and value.lower() not in allowed:
            ours = f", which is {getattr(loop, setting[5:])}" if setting.startswith("loop.") else ""
            remedy = "unset it, or change the file of `accelerate config`"
            raise InputError(f"ACCELERATE_{name} is {value!r}, but {setting} decides{ours}; {remedy}")


def make_accelerator(precision: Precision, run_folder: Path) -> Accelerator:
    """Build the Accelerator for this process and check that the ranks found each other.

    Gradient accumulation is left to the loop, which knows the totals of a whole step. Without CUDA
    everything runs on the CPU, several processes over gloo. More processes announced than joined, which would
    be two silent trainings, are an InputError.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        lacking = "fp16 needs a GPU, which this machine lacks"
        raise InputError(f"loop.precision: {lacking}; allowed are float32 and bf16")
    _, announced = read_launch()
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # seven lines per checkpoint otherwise
    try:
        on_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        if announced > 1:
            _require_gpu(on_cpu)
            meet("gloo" if on_cpu else "nccl")
        if on_cpu and THREADS not in os.environ:
            torch.set_num_threads(max(1, count_cores() - 1))  # one is for the loader, which is to keep up
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if precision == "float32" else precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            project_config=ProjectConfiguration(project_dir=str(run_folder), logging_dir=str(run_folder)),
            step_scheduler_with_optimizer=False,
        )
    except InputError:
        raise
    except (ValueError, distributed.DistError) as error:  # such as a precision that this machine lacks
        reason = " ".join(str(error).split())
        raise InputError(f"launch of {announced} processes in {precision}: {reason}") from None
    if accelerator.num_processes != announced:
        found = f"announced {announced} processes, but {accelerator.num_processes} found each other"
        remedy = "use torchrun, or `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu`"
        raise InputError(f"the launcher {found}; on CPU, {remedy}")
    return accelerator


def _require_gpu(on_cpu: bool) -> None:
    """Check that this rank of several has a GPU of its own, unless they run on the CPU."""
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if not on_cpu and local >= count:
        raise InputError(f"LOCAL_RANK is {local}, but this machine shows {count} GPUs; one process per GPU")


class Deadline:
    """Says once per step whether it is time to save and leave.

    The margin before the end covers what has been measured since the start: the longest time between two
    questions (a step, and validation and save where they fell between), and twice the longest save.
    """

    def __init__(self, end: float | None = None, now: Callable[[], float] = time.time) -> None:
        """Take the Unix time of the end, None where there is none, and a clock."""
        self._end, self._now = end, now
        self._asked: float | None = None
        self._longest_round = 0.0
        self._save = 0.0 if end is None else min(UNMEASURED_SAVE_S, max(0.0, (end - now()) / 10))
        self._measured = False

    def is_near(self) -> bool:
        """Say whether another step might not leave the time to save; ask once per step."""
        now = self._now()
        if self._asked is not None:  # before the first question lies the start-up
            self._longest_round = max(self._longest_round, now - self._asked)
        self._asked = now
        return self._end is not None and now + self.margin() >= self._end

    def margin(self) -> float:
        """Return the seconds before the end at which the run stops."""
        return self._longest_round + (2 * self._save if self._measured else self._save)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save."""
        started = self._now()
        yield
        took = self._now() - started
        self._save = max(self._save, took) if self._measured else took
        self._measured = True


def find_end(setting: str, started: float, environment: Mapping[str, str] = os.environ) -> float | None:
    """Turn `loop.time_limit`, counted from Unix time `started`, into that of the end; None for no limit."""
    if setting == "slurm":
        end = environment.get(SLURM_END, "")
        if not end.isdigit():
            lacking = f"slurm was given, but {SLURM_END} is {end or 'not set'}"
            raise InputError(f"loop.time_limit: {lacking}; give minutes or H:MM:SS instead")
        return float(end)
    limit = parse_limit(setting)
    return started + limit if limit else None


class StopAsked(SystemExit):
    """The run is to leave; raised by all ranks at one place."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopSignal:
    """Notices SIGTERM, SIGUSR1 and the end of the time, so that a job that must leave saves first.

    A second signal ends the process at once. As a context manager it puts the handlers back at the end.
    """

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline = deadline or Deadline()
        self._asked = False
        self.reason = ""
        """Why the run stops; the same on all ranks."""
        self._before: dict[int, object] = {}

    def listen(self) -> None:
        """Notice signals from now on, those included that were held back while modules were loaded."""
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._notice)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def __enter__(self) -> StopSignal:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Ask all ranks whether any of them must stop; all get the same answer."""
        return self._ask(self.deadline.is_near())

    def leave_if_asked(self, *, in_training: bool = True) -> None:
        """Wait for all ranks, and raise StopAsked on all of them if any must stop.

        The deadline counts `in_training` alone: how long a step takes, start-up does not tell.
        """
        if self._ask(in_training and self.deadline.is_near()):
            raise StopAsked

    def _ask(self, is_late: bool) -> bool:
        flags = torch.tensor([float(self._asked), float(is_late)])
        if distributed.is_initialized():
            flags = reduce(flags.to(PartialState().device), reduction="sum")
        asked, late = (flag > 0 for flag in flags.tolist())
        self.reason = "asked to stop" if asked else "time limit" if late else ""
        return bool(self.reason)

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked = True
