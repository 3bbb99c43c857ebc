"""Our EoMT beside tue-mps/eomt's, on the same random weights: every mask and class logit of every depth.

python -m benchmarks.parity --upstream FOLDER [--sizes small base large] [--out RESULTS.md]

Upstream runs in a process of its own (`benchmarks/upstream_eomt.py`) and hands over files: its weights, laid
out as published, and its predictions. Our side reads these weights with the loader that every program uses.
Exit code 1 if anything differs by more than the tolerance.

Compared per size: masked attention off, with every query masked, with every query released, and with half of
them released at random, the same ones on both sides; after moving to another image size, where upstream's
own loading refuses and its backbone's (timm's) resampling is the reference; and over a backbone in DINOv2's
published layout, whose 14-pixel patches and 37 x 37 positions both sides resample.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import safetensors
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.machine import describe_machine, publish
from models.backbone import SIZES
from models.config import DEFAULT_NUM_QUERIES, DEFAULT_PATCH_SIZE, ModelConfig
from models.eomt import EoMT, Prediction
from models.weights.checkpoint import initialise_model
from models.weights.formats import read_checkpoint
from shards.errors import InputError
from shards.schema import NUM_CLASSES
from shards.settings import parse_options, run_program

UPSTREAM_SIDE = Path(__file__).with_name("upstream_eomt.py")
CASES: dict[str, float | None] = {
    "masking off": None,
    "all masked": 1.0,
    "all released": 0.0,
    "half released": 0.5,
}
"""Name -> upstream's probability that a query keeps to its mask; None: no masked attention."""
FULL_SIZE = (1024, 1024)


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """Compare our EoMT with tue-mps/eomt's on the same random weights."""

    upstream: Path
    """Folder with the code of https://github.com/tue-mps/eomt."""
    sizes: tuple[str, ...] = ("small", "base", "large")
    """Keys of `models.backbone.SIZES`, tiny left out."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width of the comparisons; equal, as a weight file does not say the shape of its grid."""
    moved_to: tuple[int, int] = (192, 320)
    """Height and width after moving to another image size."""
    full_size: str = "large"
    """The size that is compared at 1024 x 1024 too, masking on; empty: none."""
    tolerance: float = 1e-4
    """Largest absolute difference that passes."""
    threads: int = 1
    """Threads that PyTorch may use, on both sides."""
    out: Path | None = None
    """File to write the report to as well."""

    def __post_init__(self) -> None:
        for size in (*self.sizes, *([self.full_size] if self.full_size else [])):
            if size == "tiny" or size not in SIZES:
                known = ", ".join(name for name in SIZES if name != "tiny")
                raise InputError(f"unknown size {size!r}; known sizes: {known}")
        if not (self.upstream / "models/eomt.py").is_file():
            raise InputError(
                f"--upstream {self.upstream}: no models/eomt.py; the code of tue-mps/eomt is needed"
            )


class Row(NamedTuple):
    """One depth of one case, ours beside theirs."""

    size: str
    case: str
    depth: int
    covered: float
    """Share of patches that the queries' masks cover: masked attention masks something, but not all."""
    flipped: int
    """Patches on which side of a mask the two disagree."""
    effect: float | None
    """How far masking moves upstream's final mask logits from those without it; None where not compared."""
    largest_mask: float
    mask_difference: float
    largest_class: float
    class_difference: float

    @property
    def difference(self) -> float:
        """The larger of the two."""
        return max(self.mask_difference, self.class_difference)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One network of upstream's, and how it is run."""

    size: str
    title: str
    """Before the names of its cases."""
    image_size: tuple[int, int]
    """What its weights are for."""
    cases: Mapping[str, float | None]
    moved_to: tuple[int, int] | None = None
    """Height and width it is moved to; None: it stays."""
    from_dinov2: bool = False
    """Whether its backbone comes from a file in DINOv2's layout."""


def main(arguments: Sequence[str]) -> None:
    """Compare, and print a report in Markdown; exit code 1 if the sides differ."""
    options: ParityOptions = parse_options(ParityOptions, arguments, program="benchmarks.parity")
    torch.set_num_threads(options.threads)
    rows = [row for setup in list_setups(options) for row in compare(options, setup)]
    publish(render(options, rows), options.out)
    if not all(row.difference <= options.tolerance for row in rows):
        sys.exit(1)


def list_setups(options: ParityOptions) -> list[Setup]:
    """List what is compared."""
    masked = {"all masked": 1.0}
    setups = []
    for size in options.sizes:
        plain = Setup(size=size, title="", image_size=options.image_size, cases=CASES)
        setups += [
            plain,
            replace(plain, title="moved, ", cases=masked, moved_to=options.moved_to),
            replace(plain, title="DINOv2, ", cases=masked, from_dinov2=True),
        ]
    if options.full_size:
        title = f"{FULL_SIZE[0]} x {FULL_SIZE[1]}, "
        setups.append(Setup(size=options.full_size, title=title, image_size=FULL_SIZE, cases=masked))
    return setups


def compare(options: ParityOptions, setup: Setup) -> list[Row]:
    """Let upstream answer, read its weights with ours, and set the answers side by side."""
    request = {
        "backbone": SIZES[setup.size].timm_name,
        "image_size": setup.image_size,
        "moved_to": setup.moved_to,
        "from_dinov2": setup.from_dinov2,
        "patch_size": DEFAULT_PATCH_SIZE,
        "num_queries": DEFAULT_NUM_QUERIES,
        "num_blocks": SIZES[setup.size].num_joint_blocks,
        "num_classes": NUM_CLASSES,
        "seed": 0,
        "cases": setup.cases,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request))
        ask_upstream(options, folder)
        answers = load_file(folder / "answers.safetensors")
        model = load_ours(folder, setup)
    torch.testing.assert_close(model.backbone.pos_embed, answers["pos_embed"], atol=1e-6, rtol=0)
    rows = []
    for case, probability in setup.cases.items():
        prediction = predict(model, answers["image"], probability)
        rows += set_beside(model, prediction, answers, setup, case)
    return rows


def ask_upstream(options: ParityOptions, folder: Path) -> None:
    """Run the other side; what it complains of is shown."""
    command = [
        sys.executable,
        str(UPSTREAM_SIDE),
        str(options.upstream.resolve()),
        str(folder),
        str(options.threads),
    ]
    subprocess.run(command, check=True, cwd=folder)


def load_ours(folder: Path, setup: Setup) -> EoMT:
    """Build our model from upstream's files, as fine-tuning does."""
    ckpt, bare = read_checkpoint(folder / "eomt.ckpt"), read_checkpoint(folder / "eomt.bin")
    assert ckpt.weights.keys() == bare.weights.keys()
    assert all(torch.equal(value, bare.weights[name]) for name, value in ckpt.weights.items())
    if not setup.from_dinov2:
        image_size = setup.moved_to or (0, 0)  # as the weights
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
    model: EoMT, prediction: Prediction, answers: dict[str, Tensor], setup: Setup, case: str
) -> list[Row]:
    """Compare every depth."""
    theirs = [key for key in answers if key.startswith(f"{case}/") and key.endswith("/masks")]
    assert len(theirs) == len(prediction.mask_logits) == len(prediction.class_logits)
    rows = []
    for depth, (masks, classes) in enumerate(
        zip(prediction.mask_logits, prediction.class_logits, strict=True)
    ):
        their_masks, their_classes = answers[f"{case}/{depth}/masks"], answers[f"{case}/{depth}/classes"]
        grid = model.backbone.patch_embed.grid_size
        on_patches, theirs_on_patches = (on_grid(m, grid) for m in (masks, their_masks))
        rows.append(
            Row(
                size=setup.size,
                case=setup.title + case,
                depth=depth,
                covered=float(theirs_on_patches.float().mean()),
                flipped=int((on_patches != theirs_on_patches).sum()),
                effect=find_effect(answers, case) if depth == len(theirs) - 1 else None,
                largest_mask=float(their_masks.abs().max()),
                mask_difference=float((masks - their_masks).abs().max()),
                largest_class=float(their_classes.abs().max()),
                class_difference=float((classes - their_classes).abs().max()),
            )
        )
    return rows


def find_effect(answers: dict[str, Tensor], case: str) -> float | None:
    """Say how far masking moves the final mask logits of a case from those of `masking off`."""
    unmasked = answers.get("masking off/0/masks")
    if unmasked is None or case == "masking off":
        return None
    final = max(int(key.split("/")[1]) for key in answers if key.startswith(f"{case}/"))
    return float((answers[f"{case}/{final}/masks"] - unmasked).abs().max())


def on_grid(mask_logits: Float[Tensor, "B Q h w"], grid: tuple[int, int]) -> Tensor:
    """Say which patches each mask covers."""
    return F.interpolate(mask_logits, grid, mode="bilinear") > 0


def render(options: ParityOptions, rows: Sequence[Row]) -> list[str]:
    """Return the report."""
    machine = describe_machine(options.threads, (torch, timm, safetensors))
    sides, moved = (" x ".join(map(str, sizes)) for sizes in (options.image_size, options.moved_to))
    lines = [
        "# Parity with tue-mps/eomt",
        "",
        f"{machine}; upstream {upstream_commit(options.upstream)}",
        "",
        f"Two random images of {sides}, {DEFAULT_NUM_QUERIES} queries, {NUM_CLASSES} classes, float32; "
        f"random weights, read by our loader from upstream's `.ckpt` (its `.bin` gives the same ones). "
        f"Moved: to {moved}. DINOv2: the backbone read from DINOv2's layout, patch 14 to 16, 37 x 37 "
        f"positions to the image's. The last depth of a case is the final prediction. Covered: share of "
        f"patches inside their query's mask; disagreeing: patches on another side of a mask's edge than "
        f"upstream has them; effect of masking: largest difference of a final mask logit from masking off; "
        f"then the largest absolute logit and the largest absolute difference from upstream.",
        "",
        "| size | case | depth | covered | disagreeing | effect of masking | masks | difference | classes "
        "| difference | |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        effect = "" if row.effect is None else f"{row.effect:.2f}"
        lines.append(
            f"| {row.size} | {row.case} | {row.depth} | {row.covered:.0%} | {row.flipped} | {effect} "
            f"| {row.largest_mask:.1f} | {row.mask_difference:.1e} | {row.largest_class:.1f} "
            f"| {row.class_difference:.1e} | {_verdict(row.difference, options)} |"
        )
    largest = max(row.difference for row in rows)
    told = (
        f"Largest difference {largest:.1e}, tolerance {options.tolerance:.0e}: {_verdict(largest, options)}"
    )
    return [*lines, "", told]


def _verdict(difference: float, options: ParityOptions) -> str:
    return "PASS" if difference <= options.tolerance else "FAIL"


def upstream_commit(folder: Path) -> str:
    """Return the commit that upstream's folder is at, where git knows."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    if not (folder / ".git").exists():  # git would answer for a repository around it
        return "of an unknown commit (no git folder)"
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "of an unknown commit (no git folder)"


if __name__ == "__main__":
    run_program(main)
