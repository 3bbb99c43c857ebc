"""The other side of `benchmarks.train_step`: training steps of tue-mps/eomt's own model and loss, by itself.

python benchmarks/upstream_step.py UPSTREAM FOLDER THREADS

Its packages are called `models` and `training`, so the two sides never share a process. FOLDER holds
`request.json` and takes the weights that our side starts from, the batch and, last, `times.json`. The driver
below is ours; network, losses and matching are upstream's. Left out is what Lightning does around a step.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from machine import measure_peak, read_clocks  # this file is started as a script, with its folder on the path
from safetensors.torch import save_file
from torch import Tensor
from upstream_eomt import draw_image, open_request

MAX_GRAD_NORM = 0.01
LR, WEIGHT_DECAY = 1e-4, 0.05
WEIGHTS = {"mask_coefficient": 5.0, "dice_coefficient": 5.0, "class_coefficient": 2.0}
NUM_POINTS, OVERSAMPLE, IMPORTANT, NO_OBJECT = 12544, 3.0, 0.75, 0.1
CLASSES_IN_SCENE = 12


def main(upstream: Path, folder: Path) -> None:
    """Answer one request."""
    request, generator, network = open_request(upstream, folder)
    size, batch = request["image_size"], request["batch_size"]
    images = torch.cat([draw_image(size, generator) for _ in range(batch)])[:batch].contiguous()
    label = draw_label(batch, size, request["num_classes"], generator)
    save_file({"image": images, "label": label}, folder / "batch.safetensors")
    device = torch.device(request["device"])
    targets = [split_classes(one, device) for one in label]
    times: dict[str, Any] = {}
    run = lambda: times.update(train(network, images.to(device), targets, request, device))  # noqa: E731
    times["peak"] = measure_peak(run)
    if device.type == "cuda":
        times["peak"] = torch.cuda.max_memory_allocated()
    (folder / "times.json").write_text(json.dumps(times))


def draw_label(batch: int, size: list[int], num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw label maps (B, H, W) of smooth regions of `CLASSES_IN_SCENE` classes per image."""
    coarse = torch.randn(batch, CLASSES_IN_SCENE, 8, 8, generator=generator)
    regions = torch.nn.functional.interpolate(coarse, tuple(size), mode="bilinear").argmax(dim=1)
    chosen = [torch.randperm(num_classes, generator=generator)[:CLASSES_IN_SCENE] for _ in range(batch)]
    return torch.stack([ids[region] for ids, region in zip(chosen, regions, strict=True)]).to(torch.uint8)


def split_classes(label: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Turn a label map into upstream's targets: a boolean mask per class that is there."""
    ids = label.unique()
    return {"masks": (label[None] == ids[:, None, None]).to(device), "labels": ids.long().to(device)}


def train(
    network: Any, images: Tensor, targets: list[dict[str, Tensor]], request: dict[str, Any], device: Any
) -> dict[str, Any]:
    """Take steps over the same batch; return seconds by the clock and by the processor, and losses."""
    loss_class = importlib.import_module("training.mask_classification_loss").MaskClassificationLoss
    criterion = loss_class(
        num_points=NUM_POINTS,
        oversample_ratio=OVERSAMPLE,
        importance_sample_ratio=IMPORTANT,
        num_labels=request["num_classes"],
        no_object_coefficient=NO_OBJECT,
        **WEIGHTS,
    ).to(device)
    network.to(device).train()
    network.masked_attn_enabled = True
    network.attn_mask_probs.fill_(1.0)
    groups = [{"params": [parameter]} for parameter in network.parameters()]  # one each, as upstream
    run = torch.compile(network) if request["compile"] else network  # as its main.py does by default
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=WEIGHT_DECAY)
    bf16 = request["precision"] == "bf16"
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    marks, losses = [], []
    for _ in range(request["steps"] + 1):
        marks.append(read_clocks(wait))
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            total = None
            for masks, classes in zip(*run(images / 255.0), strict=True):
                terms = criterion(masks, targets, classes)
                total = criterion.loss_total(terms, lambda *_, **__: None) + (0 if total is None else total)
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()))
    marks.append(read_clocks(wait))
    return {"marks": marks, "losses": losses}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    main(Path(sys.argv[1]), Path(sys.argv[2]))
