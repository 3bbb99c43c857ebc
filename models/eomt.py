"""EoMT: a plain ViT whose last blocks also carry queries, and heads that read masks and classes off them.

    image ─ patches ─ block 1 … block n−L ─┬─ block n−L+1 … block n ─ norm ─┬─ class head ─ (B, Q, C+1)
                                  queries ─┘                                └─ mask head · upscaled patches
                                                                                              (B, Q, h, w)

In training each of the last L blocks is preceded by a prediction of its own, whose masks say where that
block's queries may look (masked attention), and which is supervised like the final one.

Dimension letters: B images, H W image, h w mask logits, Q queries, C classes, D width, P patches,
T tokens (queries + class and register tokens + patches), L blocks that carry queries.

Source: Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025,
https://github.com/tue-mps/eomt. We differ: attention of query rows (masked) and of all other rows (not
masked) is computed apart, which gives the same result and leaves fused kernels to the large part; which
queries ignore their mask is an input, so that a step is a function of its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.backbone import SIZES, build_backbone
from models.heads import IsoMaxHead
from models.lora_settings import LoraSettings
from shards.errors import InputError
from shards.schema import NUM_CLASSES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_SIZE = "base"
DEFAULT_IMAGE_SIZE = (1024, 1024)
DEFAULT_PATCH_SIZE = 16
DEFAULT_NUM_QUERIES = 100
DEFAULT_ENTROPIC_SCALE = 10.0


class Prediction(NamedTuple):
    """What EoMT says about a batch: one entry per supervised depth, the final prediction last."""

    mask_logits: tuple[Float[Tensor, "B Q h w"], ...]
    class_logits: tuple[Float[Tensor, "B Q C1"], ...]
    """C1 is C + 1, the last column "no object"; C + 2 with a trained outlier class, which stands before it.
    Ready for softmax, whatever the class head."""
    class_distances: tuple[Float[Tensor, "B Q C1"], ...] | None = None
    """Distance to each prototype, in [0, 2 · distance scale]; with class head isomax only."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which EoMT to build, and from which weights. What is left out is read from the weights."""

    size: str = ""
    """tiny (tests, demo), small, base, large or giant. Empty: as the weights; base without any."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width in pixels that the model sees: the training crop and the evaluation window. 0 0: as
    the weights; 1024 1024 without any. Another size than theirs resamples their position embedding."""
    patch_size: int = 0
    """Side of a patch in pixels; image_size must be a multiple. 0: as the weights; 16 without any."""
    num_queries: int = 0
    """Mask proposals per image. 0: as the weights; 100 without any."""
    num_blocks: int = 0
    """Last blocks that carry queries. 0: as the weights; without any the size's own (2 tiny, 3 small and
    base, 4 large, 5 giant)."""
    num_classes: int = 0
    """Classes without "no object". 0: as the weights; 19 without any."""
    class_head: Literal["", "linear", "isomax"] = ""
    """linear, or isomax (distances to prototypes, for loss isomax_plus). Empty: as the weights; linear
    without any. With linear weights, isomax starts from the directions of their rows."""
    entropic_scale: float = 0.0
    """What isomax multiplies its distances by before softmax. 0: as the weights; 10 without any."""
    outlier_class: Literal["", "none", "trained"] = ""
    """trained: one more class, of outliers, for loss term uno. Empty: as the weights; none without any. With
    weights that have none, its row of a linear class head starts as zeros, its prototype anywhere."""
    weights: str = ""
    """Where to start from: a run or checkpoint folder of this suite, a file of tue-mps/eomt, a Hugging Face
    folder, or a DINOv2 backbone file (`jobs.doctor checkpoint` says what a file is). Empty: random
    weights."""

    def __post_init__(self) -> None:
        if self.size and self.size not in SIZES:
            raise InputError(f"model.size: unknown size {self.size!r}; known sizes: {', '.join(SIZES)}")
        if self.patch_size and self.patch_size < 4:
            raise InputError(f"model.patch_size must be at least 4, got {self.patch_size}")
        height, width = self.image_size
        patch_size = self.patch_size or DEFAULT_PATCH_SIZE
        given = any(self.image_size)
        if given and any(side <= 0 or side % patch_size for side in self.image_size):
            raise InputError(
                f"model.image_size: {height}x{width} is not divisible by model.patch_size {patch_size}"
            )
        if self.entropic_scale < 0:
            raise InputError(
                f"model.entropic_scale must be above 0, or 0 to follow the weights, got {self.entropic_scale}"
            )
        for name in ("num_queries", "num_classes", "num_blocks"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"model.{name} must be at least 1, or 0 to follow the weights, got {getattr(self, name)}"
                )

    def completed(self, found: ModelConfig | None = None) -> ModelConfig:
        """Fill what is left out from `found`, the weights' own settings, or with the defaults without."""
        size = self.size or (found.size if found else DEFAULT_SIZE)
        return ModelConfig(
            size=size,
            image_size=self.image_size
            if any(self.image_size)
            else (found.image_size if found else DEFAULT_IMAGE_SIZE),
            patch_size=self.patch_size or (found.patch_size if found else DEFAULT_PATCH_SIZE),
            num_queries=self.num_queries or (found.num_queries if found else DEFAULT_NUM_QUERIES),
            num_blocks=self.num_blocks or (found.num_blocks if found else SIZES[size].num_joint_blocks),
            num_classes=self.num_classes or (found.num_classes if found else NUM_CLASSES),
            class_head=self.class_head or (found.class_head if found else "linear"),
            entropic_scale=self.entropic_scale or (found.entropic_scale if found else DEFAULT_ENTROPIC_SCALE),
            outlier_class=self.outlier_class or (found.outlier_class if found else "") or "none",
            weights=self.weights,
        )

    @property
    def num_logits(self) -> int:
        """Columns of the class logits: classes, the outlier class if there is one, "no object"."""
        return (self.num_classes or NUM_CLASSES) + (self.outlier_class == "trained") + 1


class _Depth(NamedTuple):
    """One depth's share of a `Prediction`."""

    masks: Tensor
    classes: Tensor
    distances: Tensor | None


class EoMT(nn.Module):
    """Encoder-only Mask Transformer.

    Args:
        config: sizes, completed with the defaults; `weights` is not read here.

    Raises:
        InputError: more joint blocks than the backbone has blocks.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    lora: LoraSettings | None
    """Which adapters it carries; set by `models.lora`."""
    recompute: bool
    """Whether blocks keep nothing but their input and run again in the backward pass, to the same result."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        config = config.completed()
        self.config = config
        self.lora: LoraSettings | None = None
        self.recompute = False
        self.backbone = build_backbone(config.size, config.image_size, config.patch_size)
        depth = len(self.backbone.blocks)
        self.num_blocks = config.num_blocks
        if self.num_blocks > depth:
            raise InputError(
                f"model.num_blocks must be in 1..{depth} for size {config.size}, got {self.num_blocks}"
            )
        width = self.backbone.embed_dim
        self.queries = nn.Embedding(config.num_queries, width)
        self.class_head = _build_class_head(config, width)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        num_upscale = max(1, int(math.log2(config.patch_size)) - 2)  # mask logits at a quarter of the image
        self.upscale = nn.Sequential(*[UpscaleBlock(width) for _ in range(num_upscale)])
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it takes."""
        return self.config.image_size

    @property
    def num_queries(self) -> int:
        """Mask proposals per image."""
        return self.config.num_queries

    def forward(
        self,
        image: UInt8[Tensor, "B 3 H W"],
        released: Bool[Tensor, "L B Q"] | None = None,
        num_frozen: int = 0,
    ) -> Prediction:
        """Predict masks and their classes.

        Args:
            image: sRGB in [0, 255]; H and W as `image_size`.
            released: for masked attention: True where a query of one of the last L blocks looks at the
                whole image instead of its own mask. None: no masked attention (inference), and the
                final prediction only.
            num_frozen: how many of the first blocks, embedding included, get gradients of 0 and keep no
                activations, although they may train at other steps. At most those before the joint ones.
        """
        first_joint = len(self.backbone.blocks) - self.num_blocks
        x = self._run_trunk(image, num_frozen)
        for block in self.backbone.blocks[num_frozen:first_joint]:
            x = self._run_block(block, x, None)
        queries = self.queries.weight.to(x.dtype).expand(x.shape[0], -1, -1)
        x = torch.cat((queries, x), dim=1)  # (B, T, D)

        predictions: list[_Depth] = []
        for depth, block in enumerate(self.backbone.blocks[first_joint:]):
            may_look = None
            if released is not None:
                predictions.append(self._predict(x))
                may_look = self._may_look(predictions[-1].masks, released[depth])
            x = self._run_block(block, x, may_look)
        predictions.append(self._predict(x))
        distances = tuple(p.distances for p in predictions if p.distances is not None)
        return Prediction(
            tuple(p.masks for p in predictions), tuple(p.classes for p in predictions), distances or None
        )

    def _run_trunk(self, image: Tensor, num_frozen: int) -> Tensor:
        """Embed the image and run the blocks that stand still at this step."""
        if not num_frozen:
            return self._embed(image)
        with torch.no_grad():
            x = self._embed(image)
            for block in self.backbone.blocks[:num_frozen]:
                x = block(x)
        # Gradients of exactly 0 instead of none: what data-parallel training waits for on every rank
        still = [self.backbone.patch_embed, *self.backbone.blocks[:num_frozen]]
        parameters = [p for module in still for p in module.parameters() if p.requires_grad]
        parameters = [p for p in parameters if not hasattr(p, "full_tensor")]  # cut over ranks: nobody waits
        tokens = [self.backbone.cls_token, self.backbone.reg_token, self.backbone.pos_embed]
        parameters += [p for p in tokens if p is not None and p.requires_grad]
        return x + 0.0 * torch.stack([p.flatten()[0] for p in parameters]).sum() if parameters else x

    def _run_block(self, block: nn.Module, x: Tensor, may_look: Tensor | None) -> Tensor:
        trains = x.requires_grad or any(p.requires_grad for p in block.parameters())
        if self.recompute and trains and torch.is_grad_enabled():
            # dropout draws the same again: `checkpoint` keeps the random state, and the autocast state
            return checkpoint(_apply_block, block, x, may_look, use_reentrant=False)
        return _apply_block(block, x, may_look)

    def _embed(self, image: Tensor) -> Tensor:
        x = (image.float() / 255 - self.pixel_mean) / self.pixel_std
        return self.backbone.norm_pre(self.backbone._pos_embed(self.backbone.patch_embed(x)))

    def _predict(self, x: Tensor) -> _Depth:
        x = self.backbone.norm(x)
        queries = x[:, : self.num_queries]  # (B, Q, D)
        patches = x[:, self.num_queries + self.backbone.num_prefix_tokens :]  # (B, P, D)
        grid = patches.transpose(1, 2).unflatten(2, self.backbone.patch_embed.grid_size)
        pixels = self.upscale(grid)  # (B, D, h, w)
        masks = torch.einsum("bqd,bdhw->bqhw", self.mask_head(queries), pixels)
        if isinstance(self.class_head, IsoMaxHead):
            distances = self.class_head.distances(queries)
            return _Depth(masks, self.class_head.to_logits(distances), distances)
        return _Depth(masks, self.class_head(queries), None)

    def _may_look(self, mask_logits: Tensor, released: Tensor) -> Tensor:
        """Say which tokens each query may attend to: (B, 1, Q, T), shared by the heads.

        Other queries and the prefix tokens always; a patch if the query's mask covers it.
        """
        on_patches = F.interpolate(
            mask_logits.detach().float(), self.backbone.patch_embed.grid_size, mode="bilinear"
        )
        covered = (on_patches > 0).flatten(2) | released[..., None]  # (B, Q, P)
        always = covered.new_ones(*covered.shape[:2], self.num_queries + self.backbone.num_prefix_tokens)
        return torch.cat((always, covered), dim=2)[:, None]


def _build_class_head(config: ModelConfig, width: int) -> nn.Linear | IsoMaxHead:
    if config.class_head == "isomax":
        return IsoMaxHead(width, config.num_logits, config.entropic_scale)
    head = nn.Linear(width, config.num_logits)
    if config.outlier_class == "trained":
        with torch.no_grad():  # as UNO: no query is an outlier before it has seen one
            head.weight[config.num_classes] = 0.0
            head.bias[config.num_classes] = 0.0
    return head


class UpscaleBlock(nn.Module):
    """Double the resolution: transposed convolution, GELU, depth-wise convolution, LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm = LayerNorm2d(width)

    def forward(self, x: Float[Tensor, "B D _h _w"]) -> Float[Tensor, "B D h2 w2"]:
        """Return the map at twice the height and width."""
        trains = torch.is_grad_enabled() and self.conv1.weight.requires_grad
        doubled = _double_by_product(self.conv1, x) if trains and x.device.type == "cpu" else self.conv1(x)
        return self.norm(self.conv2(self.act(doubled)))


def _double_by_product(conv: nn.ConvTranspose2d, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h2 w2"]:
    """Compute a transposed convolution of 2 x 2 with stride 2 as one matrix product, equal to rounding.

    Each pixel becomes four of its own. On a processor, the gradient of such a convolution's weight takes up
    to 18 times as long as that of the product where channels lie innermost, as they do here (oneDNN, AVX2).
    """
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 D, D)
    assert conv.bias is not None
    parts = F.linear(x.permute(0, 2, 3, 1), weight, conv.bias.repeat(4)).unflatten(-1, (2, 2, -1))
    rows = parts.permute(0, 1, 3, 2, 4, 5)  # (B, h, 2, w, 2, D)
    return rows.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _apply_block(block: nn.Module, x: Tensor, may_look: Tensor | None) -> Tensor:
    if may_look is None:
        return block(x)
    assert isinstance(block, Block)
    assert isinstance(block.attn, Attention)
    x = x + block.drop_path1(block.ls1(_masked_attention(block.attn, block.norm1(x), may_look)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _masked_attention(attention: Attention, x: Tensor, may_look: Tensor) -> Tensor:
    """Attend with a mask on the query rows and without one on all others."""
    num_queries = may_look.shape[2]
    qkv = attention.qkv(x).unflatten(2, (3, attention.num_heads, attention.head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, head_dim)
    q, k = attention.q_norm(q), attention.k_norm(k)
    dropout = attention.attn_drop.p if attention.training else 0.0
    from_queries = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, may_look, dropout)
    from_others = F.scaled_dot_product_attention(q[:, :, num_queries:], k, v, None, dropout)
    out = torch.cat((from_queries, from_others), dim=2).transpose(1, 2).flatten(2)  # (B, T, D)
    return attention.proj_drop(attention.proj(out))
