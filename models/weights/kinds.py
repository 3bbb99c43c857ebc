"""Kinds of weight files: how each is recognised by looking, and its names translated to ours.

What stands before the names (`module.`, `model.`, Lightning's `network.`) is found by the names themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from models.backbone import KNOWN, trunk_weights
from models.weights.files import some
from models.weights.fit import is_under
from models.weights.huggingface import from_huggingface
from models.weights.trunks import FROM_TRANSFORMERS, LEFT_ASIDE, plain_names, rename
from shards.errors import InputError

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
