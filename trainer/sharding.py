"""Weights, gradients and optimizer cut over the ranks (FSDP2), and whole again in every state dict.

Each block before the joint ones is a unit: its weights are gathered when it runs and let go after. The joint
blocks, whose parts EoMT calls one by one, the heads and the embedding are gathered once per step.

Through hooks of torch, `state_dict()` of a sharded model or optimizer gives whole tensors, under the names
and in the order of an unsharded one, and the optimizer's `load_state_dict()` takes them; weights are loaded
before a model is cut. So a checkpoint does not depend on how a run was spread: one process resumes or
evaluates what eight shards wrote, and the other way round.

Source: torch.distributed.fsdp.fully_shard. We differ from Accelerate's own FSDP2, which refuses CPUs (so
nothing of it could be tested without GPUs) and writes checkpoints of another format: Accelerate launches,
casts and clips, but does not shard.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map_only

from models.adapt import merge_weights
from models.eomt import EoMT
from models.weights.fit import load_strictly
from shards.errors import InputError


def shard_model(model: EoMT, accelerator: Accelerator) -> None:
    """Cut a model over all ranks, in place; build its optimizer after this."""
    if accelerator.num_processes == 1:
        raise InputError("loop.sharding: fsdp2 needs two processes or more, and this is one")
    from torch.distributed.fsdp import fully_shard

    # of in-place changes to the output, which losses do not make
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = distributed.device_mesh.init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in model.backbone.blocks[: len(model.backbone.blocks) - model.num_blocks]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_state_dict_post_hook(_gather_weights)


def prepare(accelerator: Accelerator, model: EoMT, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Hand model and optimizer to Accelerate; a sharded model is not wrapped for data-parallel training."""
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        # said of depth-wise kernels, whose axis of one channel may have any stride
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        prepared, optimizer = accelerator.prepare(model, optimizer)
        return prepared, optimizer
    optimizer.register_state_dict_post_hook(_gather_state)
    optimizer.register_load_state_dict_pre_hook(_cut_state)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)  # as it is, but for autocast
    return prepared, accelerator.prepare_optimizer(optimizer)


def whole_model(model: EoMT) -> EoMT:
    """Return a whole copy of a sharded model, adapters merged, for evaluation; another model as it is.

    All ranks call it. Every rank holds the copy for as long as it is used: the weights once, without
    gradients and optimizer.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return model
    weights = model.state_dict()
    if model.lora is not None:
        weights = merge_weights(weights, model.lora, "sharded model")
    copy = EoMT(model.config)
    load_strictly(copy, weights, "sharded model")
    return copy.to(model.pixel_mean.device).eval()


def is_sharded(value: object) -> bool:
    """Say whether a tensor is cut over ranks."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """Gather a sharded tensor, on all ranks; another stays as it is."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


def local(value: Tensor) -> Tensor:
    """Return this rank's piece of a sharded tensor; another stays as it is."""
    return value.to_local() if is_sharded(value) else value  # type: ignore[attr-defined]


def fill_gradients(model: nn.Module) -> None:
    """Give sharded parameters that took no part in a step a gradient of 0, as `EoMT.forward` gives others."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None and is_sharded(parameter):
            parameter.grad = torch.zeros_like(parameter)


def _to_cpu(value: Tensor) -> Tensor:
    """Gather a tensor into memory of its own: what `full_tensor` returns may be a view of padded pieces."""
    gathered = whole(value).detach()
    return torch.empty_like(gathered, device="cpu").copy_(gathered)


def _cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Cut what has one number per number of a sharded parameter, as a count of steps has not."""
    if not value.ndim or is_sharded(value) or not is_sharded(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, placements)


def _gather_weights(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    if not prefix:
        state.update({name: _to_cpu(value) for name, value in state.items()})


def _gather_state(_optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return tree_map_only(Tensor, _to_cpu, state)


def _cut_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {
        index: tree_map_only(Tensor, partial(_cut_like, parameter=parameters[index]), entry)
        for index, entry in state["state"].items()
    }
    return {**state, "state": cut}
