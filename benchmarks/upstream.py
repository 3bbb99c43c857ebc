"""The other side: model, training step and loader of tue-mps/eomt itself, run from a copy of its repository.

    python benchmarks/upstream.py predict|step|load UPSTREAM FOLDER THREADS

Its packages are called `models`, `training` and `datasets`, so the two sides never share a process: nothing
of ours is imported here, and nothing is downloaded. FOLDER holds `request.json` and takes what is written.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from machine import measure_peak, read_clocks  # this file is started as a script, with its folder on the path
from safetensors.torch import save_file
from torch import Tensor, nn

DINOV2_SIDE, DINOV2_PATCH = 518, 14
BATCH = 2
MAX_GRAD_NORM, LR, WEIGHT_DECAY = 0.01, 1e-4, 0.05
LOSS = {"num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
LOSS |= {"no_object_coefficient": 0.1, "mask_coefficient": 5.0}
LOSS |= {"dice_coefficient": 5.0, "class_coefficient": 2.0}
CLASSES_IN_SCENE = 12


def answer_predictions(request: dict[str, Any], folder: Path) -> None:
    """Write weights as the published files are laid out, the image, and every prediction of every case."""
    generator, network = open_network(request, folder)
    image_size = request["image_size"]
    if moved := request["moved_to"]:  # upstream's own loading refuses another size; its backbone can change
        backbone = network.encoder.backbone
        if request["dinov3"]:
            backbone.patch_embed.grid_size = tuple(side // request["patch_size"] for side in moved)
        else:
            backbone.set_input_size(img_size=tuple(moved))
        image_size = moved
    image = draw_image(image_size, generator)
    answers = {"image": image}
    if not request["dinov3"]:
        answers["pos_embed"] = network.encoder.backbone.pos_embed.detach().clone()
    for name, probability in request["cases"].items():
        answers |= {f"{name}/{key}": value for key, value in predict(network, image, probability).items()}
    save_file(answers, folder / "answers.safetensors")


@torch.no_grad()
def predict(network: Any, image: Tensor, probability: float | None) -> dict[str, Tensor]:
    """Return masks and classes of every depth; None turns masked attention off."""
    network.masked_attn_enabled = probability is not None
    network.attn_mask_probs.fill_(probability or 0.0)
    torch.manual_seed(0)  # the queries that look past their masks are drawn from here
    masks, classes = network(image / 255.0)
    named = {f"{depth}/masks": value.contiguous() for depth, value in enumerate(masks)}
    return named | {f"{depth}/classes": value.contiguous() for depth, value in enumerate(classes)}


def answer_steps(request: dict[str, Any], folder: Path) -> None:
    """Write the weights that our side starts from, the batch, and what the steps took, `times.json`."""
    generator, network = open_network(request, folder)
    size, batch = request["image_size"], request["batch_size"]
    images = torch.cat([draw_image(size, generator) for _ in range(batch)])[:batch].contiguous()
    label = draw_label(batch, size, request["num_classes"], generator)
    save_file({"image": images, "label": label}, folder / "batch.safetensors")
    device = torch.device(request["device"])
    targets = [split_classes(one, device) for one in label]
    times: dict[str, Any] = {}
    peak = measure_peak(lambda: times.update(train(network, images.to(device), targets, request)))
    times["peak"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak
    (folder / "times.json").write_text(json.dumps(times))


def draw_label(batch: int, size: list[int], num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw label maps (B, H, W) of smooth regions of `CLASSES_IN_SCENE` classes per image."""
    coarse = torch.randn(batch, CLASSES_IN_SCENE, 8, 8, generator=generator)
    regions = nn.functional.interpolate(coarse, tuple(size), mode="bilinear").argmax(dim=1)
    chosen = [torch.randperm(num_classes, generator=generator)[:CLASSES_IN_SCENE] for _ in range(batch)]
    return torch.stack([ids[region] for ids, region in zip(chosen, regions, strict=True)]).to(torch.uint8)


def split_classes(label: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Turn a label map into upstream's targets: a boolean mask per class that is there."""
    ids = label.unique()
    return {"masks": (label[None] == ids[:, None, None]).to(device), "labels": ids.long().to(device)}


def train(
    network: Any, images: Tensor, targets: list[dict[str, Tensor]], request: dict[str, Any]
) -> dict[str, Any]:
    """Take steps over the same batch; return marks of time, one more than steps, and losses.

    The loop is ours, without what Lightning does around a step; network, losses and matching are upstream's.
    """
    device = images.device
    loss_class = importlib.import_module("training.mask_classification_loss").MaskClassificationLoss
    criterion = loss_class(num_labels=request["num_classes"], **LOSS).to(device)
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
            total: Any = 0
            for masks, classes in zip(*run(images / 255.0), strict=True):
                terms = criterion(masks, targets, classes)
                total = criterion.loss_total(terms, lambda *_, **__: None) + total
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()))
    marks.append(read_clocks(wait))
    return {"marks": marks, "losses": losses}


def answer_scenes(request: dict[str, Any], folder: Path) -> None:
    """Load a scene for every line of the standard input, and print the processor seconds it took."""
    # Lightning is imported for its base class alone, which the data set itself does not need.
    sys.modules["lightning"] = types.ModuleType("lightning")
    sys.modules["lightning"].LightningDataModule = object  # type: ignore[attr-defined]
    parser = importlib.import_module("datasets.cityscapes_semantic").CityscapesSemantic.target_parser
    transforms = importlib.import_module("datasets.transforms").Transforms
    crop = (request["crop"], request["crop"])
    torch.manual_seed(0)
    scenes = importlib.import_module("datasets.dataset").Dataset(
        img_suffix=".png",
        target_suffix=".png",
        img_stem_suffix="leftImg8bit",
        target_stem_suffix="gtFine_labelIds",
        zip_path=folder / "leftImg8bit_trainvaltest.zip",
        target_zip_path=folder / "gtFine_trainvaltest.zip",
        target_parser=parser,
        check_empty_targets=False,
        transforms=transforms(img_size=crop, color_jitter_enabled=True, scale_range=(0.5, 2.0)),
        img_folder_path_in_zip=Path("leftImg8bit/train"),
        target_folder_path_in_zip=Path("gtFine/train"),
    )
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        began = time.process_time()
        scenes[number % len(scenes)]
        print(time.process_time() - began, flush=True)


def open_network(request: dict[str, Any], folder: Path) -> tuple[torch.Generator, Any]:
    """Build the network that is asked for, with random weights, and save them."""
    generator = torch.Generator().manual_seed(request["seed"])
    network = build_network(request, folder, generator)
    save_checkpoints(network, request, folder)
    return generator, network


def draw_image(image_size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw images whose patches differ: smooth patches of colour, so that masks cover some and not all."""
    coarse = torch.randint(0, 256, (BATCH, 3, 6, 6), generator=generator).float()
    smooth = nn.functional.interpolate(coarse, tuple(image_size), mode="bilinear")
    return smooth.round().to(torch.uint8)


def build_network(request: dict[str, Any], folder: Path, generator: torch.Generator) -> Any:
    """Build upstream's EoMT with random weights; the backbone's from a 14-pixel file where that is asked."""
    make_vit = importlib.import_module("models.vit").ViT
    make_eomt = importlib.import_module("models.eomt").EoMT
    kwargs = {"img_size": tuple(request["image_size"]), "patch_size": request["patch_size"]}
    kwargs["backbone_name"] = request["backbone"]
    if request["from_dinov2"]:
        path = folder / "dinov2.pth"
        torch.save(draw_dinov2(request["backbone"], generator), path)
        create = timm.create_model  # upstream asks timm for the published weights: the file stands for them
        timm.create_model = functools.partial(create, pretrained_cfg_overlay={"file": str(path)})
        encoder = make_vit(**kwargs)
        timm.create_model = create
    elif request["dinov3"]:
        module = importlib.import_module("models.vit")
        module.AutoModel = types.SimpleNamespace(from_pretrained=lambda _: make_dinov3(request["dinov3"]))
        encoder = make_vit(**kwargs)
        draw_weights(encoder, generator)
    else:
        encoder = make_vit(**kwargs, ckpt_path="random")  # any path: no published weights
        draw_weights(encoder, generator)
    sizes = {"num_q": request["num_queries"], "num_blocks": request["num_blocks"]}
    network = make_eomt(encoder, num_classes=request["num_classes"], **sizes)
    for part in (network.q, network.class_head, network.mask_head, network.upscale):
        draw_weights(part, generator)
    with torch.no_grad():
        network.mask_head[4].weight.mul_(0.3)  # mask logits of a trained model's size
        network.q.weight.mul_(network.q.weight.shape[1] ** 0.5)  # queries that stay apart
    return network.eval()


def make_dinov3(settings: dict[str, Any]) -> Any:
    """Build transformers' DINOv3, laid out as by the version that upstream names, with random weights."""
    transformers = importlib.import_module("transformers")
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**settings))
    if not hasattr(model, "layer"):  # since version 5 a module around the blocks
        model.layer = model.model.layer
        del model.model
    return model


@torch.no_grad()
def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight, so that none stands at a 0, a 1 or a LayerScale of 1e-5 that hides differences."""
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith(("gamma", "lambda1")):
            drawn = 0.3 + 0.1 * noise
        elif name.endswith(("cls_token", "reg_token", "register_tokens", "pos_embed")):
            drawn = 0.3 * noise
        elif value.ndim == 1:  # biases and norms; large ones would drown what differs between patches
            drawn = 0.05 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            drawn = noise / math.sqrt(value[0].numel())
        value.copy_(drawn)


def draw_dinov2(backbone: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a backbone as DINOv2 publishes it: 14-pixel patches, 37 x 37 positions after the class token's."""
    model: Any = timm.create_model(backbone, img_size=DINOV2_SIDE, patch_size=DINOV2_PATCH, num_classes=0)
    draw_weights(model, generator)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state["register_tokens"] = state.pop("reg_token")
    of_class = 0.3 * torch.randn(1, 1, model.embed_dim, generator=generator)
    state["pos_embed"] = torch.cat((of_class, state["pos_embed"]), dim=1)
    state["mask_token"] = torch.zeros(1, model.embed_dim)
    return state


def save_checkpoints(network: nn.Module, request: dict[str, Any], folder: Path) -> None:
    """Write the weights as Lightning's `.ckpt` and as the published `.bin`."""
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    state["criterion.empty_weight"] = torch.ones(request["num_classes"] + 1)
    torch.save(state, folder / "eomt.bin")
    optimizer = {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 1e-4}]}
    progress = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.5.1.post0"}
    others = {"loops": {}, "callbacks": {}, "lr_schedulers": [{"last_epoch": 2}]}
    checkpoint = {**progress, "state_dict": state, **others, "optimizer_states": [optimizer]}
    torch.save(checkpoint, folder / "eomt.ckpt")


def main(task: str, upstream: str, folder: Path, threads: int) -> None:
    """Answer one request."""
    sys.path[0] = upstream  # in place of this file's folder
    torch.set_num_threads(threads)
    request = json.loads((folder / "request.json").read_text())
    {"predict": answer_predictions, "step": answer_steps, "load": answer_scenes}[task](request, folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
