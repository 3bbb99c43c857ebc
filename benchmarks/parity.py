"""Our EoMT beside tue-mps/eomt's, on the same random weights: every mask and class logit of every depth.

python -m benchmarks.parity --upstream FOLDER [--sizes base dinov3-base] [--out RESULTS.md]

Upstream runs in a process of its own (`benchmarks/upstream.py`) and hands over files: its weights, laid
out as published, and its predictions. Our side reads these weights with the loader that every program uses.
Exit code 1 if anything differs by more than the tolerance.

Compared per size: masked attention off, with every query masked, with every query released, and with half of
them released at random, the same ones on both sides; after moving to another image size, where upstream's
own loading refuses and its backbone's (timm's) resampling is the reference; and over a backbone in DINOv2's
published layout, whose 14-pixel patches and 37 x 37 positions both sides resample. Over DINOv3 upstream runs
transformers' network, which multiplies and adds in another order: equal to rounding only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.machine import ThreadedOptions, command_upstream, describe_machine, table, upstream_commit
from models.config import DEFAULT_NUM_QUERIES, DEFAULT_PATCH_SIZE, ModelConfig
from models.eomt import EoMT, Prediction
from models.trunk import SIZES
from models.weights.checkpoint import initialise_model
from models.weights.formats import read_checkpoint
from shards.errors import InputError
from shards.program import run_program
from shards.schema import NUM_CLASSES
from shards.settings import parse_options

MASKED: dict[str, float | None] = {"all masked": 1.0}
"""Name of a case -> upstream's probability that a query keeps to its mask; None: no masked attention."""
CASES = {"masking off": None, **MASKED, "all released": 0.0, "half released": 0.5}
FULL_SIZE = (1024, 1024)
HEADER = (
    "size | case | depth | covered | disagreeing | effect of masking | masks | difference | classes "
    "| difference | "
)
Row = tuple[float, list[object]]
"""Largest difference of one depth of one case, and its cells of the table."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions(ThreadedOptions):
    """Compare our EoMT with tue-mps/eomt's on the same random weights."""

    upstream: Path
    """Folder with the code of https://github.com/tue-mps/eomt."""
    sizes: tuple[str, ...] = ("small", "base", "large", "dinov3-small", "dinov3-base", "dinov3-large")
    """Keys of `models.trunk.SIZES`, tiny and gated ones of DINOv3 left out."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width of the comparisons; equal, as a weight file does not say the shape of its grid."""
    moved_to: tuple[int, int] = (192, 320)
    """Height and width after moving to another image size."""
    full_size: str = "large"
    """The size that is compared at 1024 x 1024 too, masking on; empty: none."""
    tolerance: float = 1e-4
    """Largest absolute difference that passes."""

    def __post_init__(self) -> None:
        known = [n for n, trunk in SIZES.items() if "tiny" not in n and not (trunk.rotary and trunk.gated)]
        for size in (*self.sizes, self.full_size):
            if size and size not in known:
                raise InputError(f"unknown size {size!r}; known sizes: {', '.join(known)}")
        if not (self.upstream / "models/eomt.py").is_file():
            raise InputError(
                f"--upstream {self.upstream}: no models/eomt.py; the code of tue-mps/eomt is needed"
            )


def main(arguments: Sequence[str]) -> None:
    """Compare, and print a report in Markdown; exit code 1 if the sides differ."""
    options: ParityOptions = parse_options(ParityOptions, arguments, program="benchmarks.parity")
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for size in options.sizes:
        rows += compare(options, size, "", CASES)
        rows += compare(options, size, "moved, ", MASKED, moved_to=options.moved_to)
        if not SIZES[size].rotary:
            rows += compare(options, size, "DINOv2, ", MASKED, from_dinov2=True)
    if options.full_size:
        title = f"{FULL_SIZE[0]} x {FULL_SIZE[1]}, "
        rows += compare(options, options.full_size, title, MASKED, image_size=FULL_SIZE)
    options.publish("Parity with tue-mps/eomt", render(options, rows))
    if not all(difference <= options.tolerance for difference, _ in rows):
        sys.exit(1)


def compare(
    options: ParityOptions,
    size: str,
    title: str,
    cases: Mapping[str, float | None],
    *,
    image_size: tuple[int, int] | None = None,
    moved_to: tuple[int, int] | None = None,
    from_dinov2: bool = False,
) -> list[Row]:
    """Let upstream answer, read its weights with ours, and set the answers side by side.

    The names of the cases begin with `title`. The weights are for `image_size`, height and width; None: that
    of the options. The network is then moved to `moved_to`; `from_dinov2`: its backbone comes from a file in
    DINOv2's layout.
    """
    image_size = image_size or options.image_size
    request = request_eomt(size, image_size, from_dinov2)
    request |= {"moved_to": moved_to, "cases": cases}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = command_upstream("predict", options.upstream, folder, options.threads, request)
        subprocess.run(command, check=True, cwd=folder)
        answers = load_file(folder / "answers.safetensors")
        model = load_ours(folder, moved_to or image_size, from_dinov2)
    if "pos_embed" in answers:
        torch.testing.assert_close(model.backbone.pos_embed, answers["pos_embed"], atol=1e-6, rtol=0)
    return [
        (difference, [size, title + case, *cells, _verdict(difference <= options.tolerance)])
        for case, probability in cases.items()
        for difference, cells in set_beside(model, answers, case, probability)
    ]


def request_eomt(size: str, image_size: tuple[int, int], from_dinov2: bool = False) -> dict[str, object]:
    """Describe a network for `benchmarks/upstream.py` to build."""
    trunk = SIZES[size]
    dinov3 = {
        "hidden_size": trunk.width,
        "num_hidden_layers": trunk.depth,
        "num_attention_heads": trunk.num_heads,
        "intermediate_size": trunk.hidden,
        "num_register_tokens": trunk.registers,
    }
    return {
        "backbone": f"facebook/{size}" if trunk.rotary else f"vit_{size}_patch14_reg4_dinov2",
        "dinov3": dinov3 if trunk.rotary else None,
        "image_size": image_size,
        "from_dinov2": from_dinov2,
        "patch_size": DEFAULT_PATCH_SIZE,
        "num_queries": DEFAULT_NUM_QUERIES,
        "num_blocks": trunk.num_joint_blocks,
        "num_classes": NUM_CLASSES,
        "seed": 0,
    }


def load_ours(folder: Path, image_size: tuple[int, int], from_dinov2: bool) -> EoMT:
    """Build our model for images of (height, width) from upstream's files, as fine-tuning does."""
    ckpt, bare = read_checkpoint(folder / "eomt.ckpt"), read_checkpoint(folder / "eomt.bin")
    assert ckpt.weights.keys() == bare.weights.keys()
    assert all(torch.equal(value, bare.weights[name]) for name, value in ckpt.weights.items())
    if not from_dinov2:
        return initialise_model(ModelConfig(weights=str(folder / "eomt.ckpt"), image_size=image_size)).eval()
    assert ckpt.config is not None
    model = initialise_model(replace(ckpt.config, weights=str(folder / "dinov2.pth")))
    parts = {name: value for name, value in ckpt.weights.items() if not name.startswith("backbone.")}
    missing, unexpected = model.load_state_dict(parts, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    return model.eval()


@torch.no_grad()
def predict(model: EoMT, image: Tensor, probability: float | None) -> Prediction:
    """Predict with the queries released that upstream drew: its order of draws, from its seed."""
    if probability is None:
        return model(image)
    torch.manual_seed(0)
    shape = (len(image), model.num_queries)
    drawn = [
        torch.rand(shape) > probability if probability < 1 else torch.zeros(shape, dtype=torch.bool)
        for _ in range(model.num_blocks)
    ]
    return model(image, torch.stack(drawn))


def set_beside(
    model: EoMT, answers: dict[str, Tensor], case: str, probability: float | None
) -> Iterator[Row]:
    """Compare every depth; cells from the depth on, without the verdict."""
    prediction = predict(model, answers["image"], probability)
    theirs = [key for key in answers if key.startswith(f"{case}/") and key.endswith("/masks")]
    assert len(theirs) == len(prediction.mask_logits) == len(prediction.class_logits)
    unmasked = answers.get("masking off/0/masks") if probability is not None else None
    grid = model.backbone.patch_embed.grid_size
    for depth, logits in enumerate(zip(prediction.mask_logits, prediction.class_logits, strict=True)):
        their_masks, their_classes = answers[f"{case}/{depth}/masks"], answers[f"{case}/{depth}/classes"]
        both = (logits[0], their_masks)
        covered, theirs_covered = (F.interpolate(masks, grid, mode="bilinear") > 0 for masks in both)
        is_last = depth == len(theirs) - 1
        effect = "" if unmasked is None or not is_last else f"{(their_masks - unmasked).abs().max():.2f}"
        cells: list[object] = [depth, f"{theirs_covered.float().mean():.0%}"]
        cells += [int((covered != theirs_covered).sum()), effect]
        differences = []
        for ours, other in zip(logits, (their_masks, their_classes), strict=True):
            differences.append((ours - other).abs().max())
            cells += [f"{other.abs().max():.1f}", f"{differences[-1]:.1e}"]
        yield float(torch.stack(differences).max()), cells  # torch's max keeps a NaN


def render(options: ParityOptions, rows: Sequence[Row]) -> list[str]:
    """Return the report."""
    machine = describe_machine(options.threads, (torch, timm, safetensors))
    sides, moved = (" x ".join(map(str, sizes)) for sizes in (options.image_size, options.moved_to))
    differences = torch.tensor([difference for difference, _ in rows])
    passes = bool((differences <= options.tolerance).all())
    return [
        f"{machine}; upstream {upstream_commit(options.upstream)}",
        "",
        f"Two random images of {sides}, {DEFAULT_NUM_QUERIES} queries, {NUM_CLASSES} classes, float32; "
        f"random weights, read by our loader from upstream's `.ckpt` (its `.bin` gives the same ones). "
        f"Moved: to {moved}. DINOv2: the backbone read from DINOv2's layout, patch 14 to 16, 37 x 37 "
        f"positions to the image's. The last depth of a case is the final prediction. Covered: share of "
        f"patches inside their query's mask; disagreeing: patches on another side of a mask's edge than "
        f"upstream has them; effect of masking: largest difference of a final mask logit from masking off; "
        f"then the largest absolute logit and the largest absolute difference from upstream.",
        *table(HEADER, [cells for _, cells in rows], text_columns=2),
        "",
        f"Largest difference {float(differences.max()):.1e}, tolerance {options.tolerance:.0e}: "
        f"{_verdict(passes)}",
    ]


def _verdict(passes: bool) -> str:
    return "PASS" if passes else "FAIL"


if __name__ == "__main__":
    run_program(main)
