"""Settings of an EoMT and of its adapters, and `model.json`, which records both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eval.predict.score_names import HEAD_SCORES
from models.adaptation import LoraSettings
from models.trunk import SIZES, Trunk
from shards.errors import InputError
from shards.files import Location, from_json, read_json, require_title, to_json
from shards.schema import CITYSCAPES, DEFAULT_SIZE, NUM_CLASSES, ClassTable, SceneClass, unnamed_classes

DEFAULT_PATCH_SIZE = 16
DEFAULT_NUM_QUERIES = 100
LARGEST_NUMBER = 10_000
"""Of queries, of classes, and of an outlier head's channels."""
LARGEST_BANK = 10**6
LARGEST_GRID = 2**18
"""Patches of an image, such as 8192x8192 pixels in patches of 16x16."""
Precision = Literal["float32", "bf16", "fp16"]
DESCRIPTION_NAME = "model.json"
METADATA_KEY = "model"
"""In the header of an exported `.safetensors`: the text that `model.json` would hold."""


@dataclass(frozen=True, kw_only=True)
class OutlierHeadConfig:
    """Outlier head of `adapt.mode outlier_head`; every other mode takes off what the weights have."""

    width: int = 0
    """Channels inside it. 0: as the weights; 128 where they have no trained head."""
    blocks: tuple[int, ...] = ()
    """Blocks whose patch tokens it reads, counted from 0. Empty: four, evenly spread, up to the last; of a
    fitted head the last."""
    claims: bool = True
    """Whether it also reads which classes and how many queries claim a pixel."""
    bank: int = 0
    """Tokens that a head keeps which `jobs.fit_head` has fitted; 0 of one that is trained."""

    def __post_init__(self) -> None:
        for name, most in (("width", LARGEST_NUMBER), ("bank", LARGEST_BANK)):
            if not 0 <= (number := getattr(self, name)) <= most:
                allowed = f"1 to {most}, or 0 to follow the weights"
                raise InputError(f"model.outlier_head.{name} must be {allowed}, got {number}")
        if self.width and self.bank:
            raise InputError("model.outlier_head: width is of a trained head, bank of a fitted one; give one")
        if list(self.blocks) != sorted({block for block in self.blocks if block >= 0}):
            given = ", ".join(map(str, self.blocks))
            raise InputError(f"model.outlier_head.blocks: got {given}; numbers from 0, ascending, each once")
        if not self.exists and (self.blocks or not self.claims):
            raise InputError("model.outlier_head: with blocks or claims, width is needed")

    @property
    def exists(self) -> bool:
        """Whether there is a head."""
        return bool(self.width or self.bank)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that it says."""
        return HEAD_SCORES[: 1 if self.width else None] if self.exists else ()

    def __str__(self) -> str:
        reads = f"which reads blocks {', '.join(map(str, self.blocks))}"
        if self.bank:
            return f"fitted, of {self.bank} tokens, {reads}"
        return f"of width {self.width}, {reads}{' and claims' * self.claims}" if self.width else "none"

    def completed(self, depth: int) -> OutlierHeadConfig:
        """Fill the blocks of a head over a trunk of `depth` blocks; without a head there are none."""
        if self.blocks and self.blocks[-1] >= depth:
            wrong = f"got {self.blocks[-1]}, the trunk's are 0 to {depth - 1}"
            raise InputError(f"model.outlier_head.blocks: {wrong}")
        quarters = range(1, 5) if self.width else (4,)
        spread = sorted({depth * quarter // 4 - 1 for quarter in quarters if depth * quarter >= 4})
        return dataclasses.replace(self, blocks=self.blocks or tuple(spread)) if self.exists else self


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of an EoMT, and the weights it starts from, which tell what is left out here."""

    size: str = ""
    """Trunk by name: tiny (tests, demo), small, base, large or giant, as DINOv2 with registers; dinov3-tiny,
    -small, -small-plus, -base, -large, -huge-plus or -7b. Empty: as the weights; base without any."""
    trunk: Trunk = field(default_factory=Trunk)
    """The trunk in numbers. Left out, `size` says them, or the weights do: any width, depth and registers."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width in pixels that the model sees: the training crop and the evaluation window. 0 0: as
    the weights; 1024 1024 without any. Another size than theirs resamples a learned position embedding."""
    patch_size: int = 0
    """Side of a patch in pixels; image_size must be a multiple. 0: as the weights; 16 without any."""
    num_queries: int = 0
    """Mask proposals per image. 0: as the weights; 100 without any."""
    num_blocks: int = 0
    """Last blocks that carry queries. 0: as the weights; without any, by the number of blocks: 2 below 12, 3
    below 24, 4 below 32, 5 from there on, as published."""
    num_classes: int = 0
    """Classes without "no object". 0: as the shards that it trains on, else as the weights."""
    classes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Colour (R, G, B) of each class by name, in the order of train ids: as the shards. Empty: Cityscapes'
    where there are 19, else without names."""
    trained_on: tuple[str, ...] = field(default=(), compare=False)
    """Names of the sets of scenes that it was trained on, as their manifests have them; results say them.
    Empty: Cityscapes, or not known."""
    class_head: Literal["", "linear", "isomax"] = ""
    """linear, or isomax (distances to prototypes, for loss isomax_plus). Empty: as the weights; linear
    without any. With linear weights, isomax starts from the directions of their rows."""
    entropic_scale: float = 0.0
    """Factor of isomax's distances before softmax. 0: as the weights; 10 without any."""
    outlier_class: Literal["", "none", "trained"] = ""
    """trained: one more class, of outliers, for loss term uno. Empty: as the weights; none without any. With
    weights that have none, its row of a linear class head starts as zeros, its prototype anywhere."""
    outlier_head: OutlierHeadConfig = field(default_factory=OutlierHeadConfig)
    weights: Location = ""
    """The start: a run or checkpoint folder of this suite, a file of tue-mps/eomt, a Hugging Face folder, or
    a backbone: DINOv2, DINOv3 or a plain ViT (`jobs.doctor checkpoint` says what a file is). Empty: random
    weights."""
    base: Location = ""
    """DINOv3's own file, where the weights are published as differences to it."""
    origin: str = field(default="", compare=False)
    """Name, hash and licence of the weights that trained first, which go along with all that comes of them.
    Empty: as the weights say."""

    def __post_init__(self) -> None:
        if self.size and self.size not in SIZES and not self.trunk.width:
            raise InputError(f"model.size: unknown size {self.size!r}; known sizes: {', '.join(SIZES)}")
        if self.trunk.width and self.size not in ("", self.trunk.name):
            raise InputError(f"model.size: {self.size}, but model.trunk is {self.trunk}; leave one out")
        if not self.origin.isprintable():
            raise InputError(f"model.origin: got {self.origin!r:.80}; one line of printable text is needed")
        if self.patch_size and self.patch_size < 4:
            raise InputError(f"model.patch_size must be at least 4, got {self.patch_size}")
        (height, width), patch = self.image_size, self.patch_size or DEFAULT_PATCH_SIZE
        if (height or width) and (min(height, width) <= 0 or height % patch or width % patch):
            wrong = f"{height}x{width} is not divisible by model.patch_size {patch}"
            raise InputError(f"model.image_size: {wrong}")
        if self.entropic_scale < 0:
            allowed = "above 0, or 0 to follow the weights"
            raise InputError(f"model.entropic_scale must be {allowed}, got {self.entropic_scale}")
        if (height // patch) * (width // patch) > LARGEST_GRID:
            wrong = f"{height}x{width} is cut into more than {LARGEST_GRID} patches of {patch}x{patch}"
            raise InputError(f"model.image_size: {wrong}")
        for name in ("num_queries", "num_classes", "num_blocks"):
            if not 0 <= (number := getattr(self, name)) <= LARGEST_NUMBER:
                allowed = f"1 to {LARGEST_NUMBER}, or 0 to follow the weights"
                raise InputError(f"model.{name} must be {allowed}, got {number}")
        for name in self.trained_on:
            require_title(name, "model.trained_on")
        if self.classes and len(self.class_table) != self.num_classes:
            raise InputError(f"model.num_classes: got {self.num_classes}, model.classes {len(self.classes)}")

    def over(self, trunk: Trunk) -> ModelConfig:
        """Take a trunk where `size` names it or, of a DINOv2, one of its width and depth."""
        named = SIZES.get(self.size)
        if self.trunk.width or named is None or named.rotary > trunk.rotary:
            return self
        is_named = (named.width, named.depth) == (trunk.width, trunk.depth)
        return dataclasses.replace(self, size="", trunk=trunk) if is_named else self

    def completed(self, found: ModelConfig | None = None) -> ModelConfig:
        """Fill what is left out from `found`, the weights' own complete settings, or with the defaults."""
        if found is not None and self != (over := self.over(found.trunk)):
            return over.completed(found)
        trunk = self.trunk if self.trunk.width else SIZES.get(self.size)
        default = trunk or SIZES["base"]
        found = found or ModelConfig(
            size=default.name,
            trunk=default,
            image_size=DEFAULT_SIZE,
            patch_size=DEFAULT_PATCH_SIZE,
            num_queries=DEFAULT_NUM_QUERIES,
            num_blocks=default.num_joint_blocks,
            num_classes=NUM_CLASSES,
            class_head="linear",
            entropic_scale=10.0,
            outlier_class="none",
        )
        given = {name: value for name, value in vars(self).items() if value and value != (0, 0)}
        given |= {"weights": self.weights, "base": self.base, "trunk": trunk or found.trunk}
        head = self.outlier_head if self.outlier_head.exists else found.outlier_head
        given |= {"size": given["trunk"].name, "outlier_head": head.completed(given["trunk"].depth)}
        given |= {"classes": self.classes} if self.num_classes else {}
        return dataclasses.replace(found, **given)

    @property
    def parts(self) -> set[str]:
        """What anomaly scores can read of such a network, as `eval.predict.score_names.NEEDS` calls it."""
        has = {
            "class distances": self.class_head == "isomax",
            "an outlier class": self.outlier_class == "trained",
            "an outlier head": self.outlier_head.exists,
            "a fitted outlier head": self.outlier_head.bank > 0,
        }
        return {"queries", *(part for part, is_there in has.items() if is_there)}

    @property
    def num_logits(self) -> int:
        """Columns of the class logits: classes, the outlier class if there is one, "no object"."""
        return (self.num_classes or NUM_CLASSES) + (self.outlier_class == "trained") + 1

    @property
    def class_table(self) -> ClassTable:
        """Names and colours of the classes."""
        if not self.classes:
            return unnamed_classes(self.num_classes or NUM_CLASSES)
        return ClassTable(tuple(SceneClass(name, color) for name, color in self.classes.items()))

    def of_classes(self, table: ClassTable, trained_on: tuple[str, ...] = ()) -> ModelConfig:
        """Return these settings for the classes of shards; Cityscapes' names are not written down."""
        if self.num_classes not in (0, len(table)):
            given = f"{len(table)}, as many as the shards have, got {self.num_classes}"
            start = "weights of another label set can start with --init.skip class_head"
            raise InputError(f"model.num_classes must be {given}; {start}")
        named = {} if table == CITYSCAPES else table.colors
        return dataclasses.replace(
            self, num_classes=len(table), classes=named, trained_on=trained_on or self.trained_on
        )

    def join_sets(self, later: tuple[str, ...]) -> tuple[str, ...]:
        """Add sets that it trains on now; a model of Cityscapes that names none has seen Cityscapes."""
        is_cityscapes = not self.classes and self.num_classes == NUM_CLASSES
        before = self.trained_on or (("Cityscapes",) if is_cityscapes else ())
        return tuple(dict.fromkeys((*before, *later))) if later else self.trained_on

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Selection from `model.weights`."""

    skip: tuple[str, ...] = ()
    """Weights that keep their initial values whatever the file holds, such as class_head or queries: a full
    name, or its first words up to a dot. Anything else that is missing is an error."""


@dataclass(frozen=True, kw_only=True)
class _Description(ModelConfig):
    """Content of `model.json`."""

    image_size: tuple[int, int] = field()  # no shape tells it, so it must be there
    lora: LoraSettings | None = None

    def split(self) -> tuple[ModelConfig, LoraSettings | None]:
        config = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(ModelConfig)}
        return ModelConfig(**config).completed(), self.lora


def describe(config: ModelConfig, lora: LoraSettings | None = None) -> str:
    """Return the text of `model.json`; `lora` stands for the adapters that the weights contain."""
    settings = dataclasses.asdict(config) | ({"lora": lora} if lora else {})
    for name, usual in (("classes", {}), ("trained_on", ("Cityscapes",))):
        if settings[name] in (usual, ()):
            del settings[name]
    return to_json(settings, indent=2)


def parse_description(text: str, where: str) -> tuple[ModelConfig, LoraSettings | None]:
    """Read the text of a `model.json`, complete with the defaults; `where` opens messages."""
    return from_json(_Description, text, where).split()


def read_description(folder: Path) -> tuple[ModelConfig, LoraSettings | None]:
    """Read a checkpoint's `model.json`."""
    return read_json(_Description, folder / DESCRIPTION_NAME).split()
