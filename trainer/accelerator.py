"""The Accelerator of a run, and settings of Accelerate that would decide what this suite decides."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, parse_flag_from_env
from torch import distributed

from models.config import Precision
from shards.cores import THREADS, count_cores
from shards.errors import InputError
from shards.rendezvous import meet, read_launch
from trainer.sections import LoopConfig

OTHER_ENGINES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")


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
