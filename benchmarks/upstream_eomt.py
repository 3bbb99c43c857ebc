"""The other side of `benchmarks.parity`: tue-mps/eomt's own model, run by itself.

python benchmarks/upstream_eomt.py UPSTREAM FOLDER THREADS

Its package is called `models`, as ours is, so the two never share a process. FOLDER holds `request.json` and
takes what this side writes: weights as the published files are laid out, the image, and every prediction.
Nothing of ours is imported here, and nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

DINOV2_SIDE, DINOV2_PATCH = 518, 14
BATCH = 2


def main(upstream: Path, folder: Path) -> None:
    """Answer one request."""
    request, generator, network = open_request(upstream, folder)
    image_size = request["image_size"]
    if moved := request["moved_to"]:  # upstream's own loading refuses another size; its backbone can change
        network.encoder.backbone.set_input_size(img_size=tuple(moved))
        image_size = moved
    image = draw_image(image_size, generator)
    answers = {"image": image, "pos_embed": network.encoder.backbone.pos_embed.detach().clone()}
    for name, probability in request["cases"].items():
        answers |= {f"{name}/{key}": value for key, value in predict(network, image, probability).items()}
    save_file(answers, folder / "answers.safetensors")


def open_request(upstream: Path, folder: Path) -> tuple[dict[str, Any], torch.Generator, Any]:
    """Read the request, and build the network that it asks for and save its weights."""
    sys.path[0] = str(upstream)  # in place of this file's folder
    request = json.loads((folder / "request.json").read_text())
    generator = torch.Generator().manual_seed(request["seed"])
    network = build_network(request, folder, generator)
    save_checkpoints(network, request, folder)
    return request, generator, network


def draw_image(image_size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw images whose patches differ: smooth patches of colour, so that masks cover some and not all."""
    coarse = torch.randint(0, 256, (BATCH, 3, 6, 6), generator=generator).float()
    smooth = nn.functional.interpolate(coarse, tuple(image_size), mode="bilinear")
    return smooth.round().to(torch.uint8)


def build_network(request: dict[str, Any], folder: Path, generator: torch.Generator) -> Any:
    """Build upstream's EoMT with random weights; the backbone's from a 14-patch file where that is asked."""
    make_vit = importlib.import_module("models.vit").ViT
    make_eomt = importlib.import_module("models.eomt").EoMT
    kwargs = {
        "img_size": tuple(request["image_size"]),
        "patch_size": request["patch_size"],
        "backbone_name": request["backbone"],
    }
    if request["from_dinov2"]:
        path = folder / "dinov2.pth"
        torch.save(draw_dinov2(request["backbone"], generator), path)
        create = timm.create_model  # upstream asks timm for the published weights: the file stands for them
        timm.create_model = functools.partial(create, pretrained_cfg_overlay={"file": str(path)})
        encoder = make_vit(**kwargs)
        timm.create_model = create
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


def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight, so that none stands at a 0, a 1 or a LayerScale of 1e-5 that hides differences."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(_draw(name, value, generator))


def _draw(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=generator)
    if name.endswith("gamma"):
        return 0.3 + 0.1 * noise
    if name.endswith(("cls_token", "reg_token", "pos_embed")):
        return 0.3 * noise
    if value.ndim == 1:  # biases and norms; large ones would drown what differs between patches
        return 0.05 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return noise / math.sqrt(value[0].numel())


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
    lightning = {
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.5.1.post0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"last_epoch": 2}],
    }
    torch.save(lightning, folder / "eomt.ckpt")


@torch.no_grad()
def predict(network: Any, image: Tensor, probability: float | None) -> dict[str, Tensor]:
    """Return masks and classes of every depth; None turns masked attention off."""
    network.masked_attn_enabled = probability is not None
    network.attn_mask_probs.fill_(probability or 0.0)
    torch.manual_seed(0)  # the queries that look past their masks are drawn from here
    masks, classes = network(image / 255.0)
    named = {f"{depth}/masks": value.contiguous() for depth, value in enumerate(masks)}
    return named | {f"{depth}/classes": value.contiguous() for depth, value in enumerate(classes)}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    main(Path(sys.argv[1]), Path(sys.argv[2]))
