"""Kinds of weight files: how each is recognised by looking, and its names translated to ours.

What stands before the names (`module.`, `model.`, Lightning's `network.`) is found by the names themselves.
Ours are timm's, a gate in one matrix with what it gates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from models.backbone import KNOWN, trunk_weights
from models.weights.files import some
from models.weights.fit import is_under
from models.weights.huggingface import from_huggingface
from shards.errors import InputError

LEFT_ASIDE = (
    "head", "head_dist", "fc", "pre_logits", "fc_norm", "attn_pool", "pooler", "classifier",
    "mask_token", "embeddings.mask_token", "decoder", "decoder_blocks", "decoder_embed", "decoder_norm",
    "decoder_pos_embed", "decoder_pred", "projectors", "local_cls_norm", "rope_embed", "rope",
    "rope_embeddings",
)  # fmt: skip
"""Parts of published backbones that belong to their pretraining or their classifier, or hold no weights."""
OTHER_NAMES = (
    (r"^layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"^(storage|register)_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
"""DINOv2's and DINOv3's names, as patterns, and ours."""
GATES = (("mlp.w1", "mlp.w2"), ("mlp.fc1_g", "mlp.fc1_x"))
"""Two matrices of a gated MLP, gate first, that are one with us."""
LARGEST_SHARE = 0.1
"""Of a trained network's factors in norms that may be 0 or less; none is in DINOv2-S, half of differences."""
FROM_TRANSFORMERS = (
    (r"^(encoder|model)\.", ""),
    (r"^layer\.", "layers."),
    (r"^norm\.", "layernorm."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.out_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^embeddings\.position_embeddings$", "embeddings.position_embeddings.weight"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
)
"""Names of transformers' DINOv2, DINOv3 and ViT, as patterns, and those of its EoMTs."""


def rename(weights: Mapping[str, Tensor], patterns: Sequence[tuple[str, object]]) -> dict[str, Tensor]:
    """Replace what matches in names, pattern after pattern."""
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)  # type: ignore[call-overload]
        renamed[name] = value
    return renamed


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a backbone of timm, DINOv2 or DINOv3 our names; what it does not know stays as it is.

    A position of the class token is added to the token; a norm behind the pooling takes the place of a
    missing final one; biases of a DINOv3 file without any are zeros.
    """
    kept = {n: v for n, v in weights.items() if not is_under(n, LEFT_ASIDE)}
    if "norm.weight" not in kept:
        kept |= {n.removeprefix("fc_"): v for n, v in weights.items() if is_under(n, ["fc_norm"])}
    ours = rename(kept, OTHER_NAMES)
    for first, second in GATES:
        for name in [name for name in ours if f".{first}." in name]:
            other = name.replace(first, second)
            if other in ours and ours[name].shape[1:] == ours[other].shape[1:]:
                gate, value = ours.pop(name), ours.pop(other)
                ours[name.replace(first, "mlp.fc1")] = torch.cat((gate, value))
    if "pos_embed" not in ours and any("gamma" in name for name in ours):
        return _rotary_names(ours)
    return ours if "reg_token" in weights else _without_class_position(ours)  # timm's has no such position


def _rotary_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give DINOv3's weights the names of timm's: queries and values have biases, keys have none."""
    ours = {}
    for name, value in weights.items():
        block = name.partition(".attn.")[0]
        if name.endswith("attn.qkv.bias") and value.ndim == 1:
            ours[f"{block}.attn.q_bias"], _, ours[f"{block}.attn.v_bias"] = value.chunk(3)
        elif not name.endswith("attn.qkv.bias_mask"):
            ours[re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)] = value
    for name in [name for name in ours if name.endswith("attn.qkv.weight") and ours[name].ndim == 2]:
        for bias in ("q_bias", "v_bias"):
            ours.setdefault(name.replace("qkv.weight", bias), ours[name].new_zeros(len(ours[name]) // 3))
    return ours


def _without_class_position(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the position of the class token, which stands before those of a square grid, to the token."""
    positions, token = weights.get("pos_embed"), weights.get("cls_token")
    if positions is None or token is None or not positions.ndim == token.ndim == 3:
        return weights
    if positions.shape[1] - math.isqrt(positions.shape[1]) ** 2 != 1 or positions.shape[2] != token.shape[2]:
        return weights
    moved = token.float() + positions[:, :1].float()
    return weights | {"pos_embed": positions[:, 1:], "cls_token": moved}


def add_difference(
    difference: Mapping[str, Tensor], base: Mapping[str, Tensor], where: str, base_where: str
) -> dict[str, Tensor]:
    """Add a backbone published as a difference to its base, both in our names."""
    wrong = [n for n, v in difference.items() if n not in base or base[n].shape != v.shape]
    if wrong := wrong + [name for name in base if name not in difference]:
        other = f"{len(wrong)} weights are not alike, such as {wrong[0]}"
        raise InputError(f"model.base {base_where}: is not what {where} holds differences to: {other}")
    return {name: base[name].float() + value.float() for name, value in difference.items()}


def holds_differences(backbone: Mapping[str, Tensor], settings: Mapping[str, Tensor]) -> bool:
    """Say whether a file of tue-mps/eomt holds differences to a trained backbone.

    Norms of a trained one multiply by factors above 0. Upstream adds such a file to all that its encoder
    holds, to the mean of the pixels too, whose difference is 0.
    """
    mean = settings.get("encoder.pixel_mean")
    if mean is not None and not mean.any():
        return True
    factors = [v.float().flatten() for n, v in backbone.items() if re.search(r"norm\d?\.weight$", n)]
    return bool(factors) and float((torch.cat(factors) <= 0).float().mean()) > LARGEST_SHARE


INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put before or into a name."""


class Kind(NamedTuple):
    """One kind of weights."""

    title: str
    marks: tuple[str, ...]
    """Names that all occur in it; one with a dot at its end is the start of a name."""
    is_eomt: bool = True
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """Gives the weights our names."""


UPSTREAM = ((r"^encoder\.backbone\.", "backbone."), (r"^q\.", "queries."))
UPSTREAM_DINOV3 = (
    (r"^encoder\.backbone\.patch_embed\.", "embeddings."),
    (r"^encoder\.backbone\.blocks\.", "layers."),
    (r"^encoder\.backbone\.norm\.", "layernorm."),
    *UPSTREAM,
)
"""Names of tue-mps/eomt, whose DINOv3 is that of transformers, and those of transformers' EoMT."""


def from_upstream(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of tue-mps/eomt to ours; names it does not know stay as they are."""
    if _find_before("patch_embed.patch_embeddings.weight", weights):
        return from_huggingface(rename(weights, UPSTREAM_DINOV3))
    return _plain_backbone(rename(weights, UPSTREAM))


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a ViT of transformers to ours."""
    kept = {name: v for name, v in weights.items() if not is_under(name, LEFT_ASIDE)}
    ours = from_huggingface(rename(kept, FROM_TRANSFORMERS))
    return plain_names({name.removeprefix("backbone."): value for name, value in ours.items()})


def _plain_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    others = {name: value for name, value in weights.items() if not name.startswith("backbone.")}
    return others | {f"backbone.{n}": v for n, v in plain_names(trunk_weights(weights)).items()}


KINDS = {
    "lightly": Kind(
        "EoMT of LightlyTrain", ("queries.weight", "backbone.mask_token"), translate=_plain_backbone
    ),
    "eomt-anomaly": Kind("EoMT of this suite", ("queries.weight", "backbone.")),
    "upstream": Kind("EoMT of tue-mps/eomt", ("q.weight", "encoder.backbone."), translate=from_upstream),
    "huggingface": Kind(
        "EoMT of Hugging Face transformers",
        ("query.weight", "layers.0.attention."),
        translate=from_huggingface,
    ),
    "backbone": Kind(
        "ViT backbone (DINOv2, DINOv3 or timm)",
        ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),
        is_eomt=False,
        translate=plain_names,
    ),
    "transformers": Kind(
        "ViT backbone of Hugging Face transformers",
        ("embeddings.cls_token", "embeddings.patch_embeddings."),
        is_eomt=False,
        translate=from_transformers,
    ),
    "erfnet": Kind("ERFNet", ("encoder.initial_block.conv.weight",), is_eomt=False),
}


def without_infixes(weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        bare = name
        for infix in INFIXES:
            bare = bare.replace(infix, "")
        if bare in plain:
            raise InputError(f"{where}: holds {bare} twice, with and without what a wrapper adds to names")
        plain[bare] = value
    return plain


def recognise(weights: Mapping[str, Tensor], where: Path) -> tuple[str, str]:
    """Return the kind, and what stands before the names of all its weights."""
    for kind, row in KINDS.items():
        prefixes = sorted(set.intersection(*(_find_before(mark, weights) for mark in row.marks)))
        if len(prefixes) > 1:
            places = ", ".join(prefix or "no prefix" for prefix in prefixes)
            raise InputError(
                f"{where}: holds an {row.title} {len(prefixes)} times: {places}; keep one of them"
            )
        if prefixes:
            return kind, prefixes[0]
    known = ", ".join(row.title for row in KINDS.values())
    unknown = f"weights of no known kind, with names {some(list(weights))}; known kinds: {known}; {KNOWN}"
    raise InputError(f"{where}: {unknown}; --model_file measures any other network (docs/own-models.md)")


def _find_before(mark: str, names: Iterable[str]) -> set[str]:
    """Return what stands before `mark` in names where it begins at a dot; see `Kind.marks`."""
    dotted = [(f".{name}", f".{mark}") for name in names]
    if mark.endswith("."):
        found = {name.partition(m)[0] for name, m in dotted if m in name}
    else:
        found = {name.removesuffix(m) for name, m in dotted if name.endswith(m)}
    return {f"{prefix}.".lstrip(".") for prefix in found}
