"""What each group of parameters does at a step: learning rate, gradient norm, size of the adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.eomt import EoMT
from models.lora import adapter_norms
from trainer.sharding import whole


@dataclass(frozen=True)
class GroupDetails:
    """Scalars by TensorBoard tag, of a run that logs them; the groups are those of `trainer.optim`."""

    optimizer: torch.optim.Optimizer
    model: EoMT
    max_grad_norm: float
    """To which gradients are clipped; 0: not at all."""

    def __call__(self, grad_norm: float) -> Mapping[str, float]:
        """Read rates, gradients and adapters between the clipping and the optimizer's step.

        Args:
            grad_norm: of all gradients before they were clipped; norms of groups are given as before it too.
        """
        clipped = min(1.0, self.max_grad_norm / (grad_norm + 1e-6)) if self.max_grad_norm else 1.0
        clipped = clipped or 1.0  # of an infinite norm, with fp16
        groups = {str(group["name"]): group for group in self.optimizer.param_groups}
        norms = torch.stack(
            [_norm(group["params"]) for group in groups.values()]
        ).tolist()  # one wait for all
        found = {f"lr/{name}": float(group["lr"]) for name, group in groups.items()}
        found |= {f"grad_norm/{name}": norm / clipped for name, norm in zip(groups, norms, strict=True)}
        return found | {f"lora/{layer}": norm for layer, norm in adapter_norms(self.model).items()}


def _norm(parameters: list[Tensor]) -> Tensor:
    norms = [whole(torch.linalg.vector_norm(p.grad)) for p in parameters if p.grad is not None]
    return (
        torch.linalg.vector_norm(torch.stack(norms))
        if norms
        else torch.zeros((), device=parameters[0].device)
    )
