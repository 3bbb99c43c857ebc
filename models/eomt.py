"""EoMT: a plain ViT with queries in its last blocks, and heads for masks and classes.

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
queries ignore their mask is an input, so that a step is a function of its seed. Over DINOv3, queries carry no
rotary position, like class and register tokens, as upstream; its random rescaling of positions in training
(from half to double) is left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from timm.layers import LayerNorm2d
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eval.predict.queries import QueryOutputs
from models.adaptation import LoraSettings
from models.backbone import build_backbone
from models.config import ModelConfig, OutlierHeadConfig
from models.heads import IsoMaxHead, OutlierHead
from models.token_bank import TokenBank
from shards.errors import InputError
from shards.schema import NUM_CLASSES, ClassTable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Prediction(NamedTuple):
    """EoMT's answer to a batch: one entry per supervised depth, the final prediction last."""

    mask_logits: tuple[Float[Tensor, "B Q h w"], ...]
    class_logits: tuple[Float[Tensor, "B Q C1"], ...]
    """C1 is C + 1, the last column "no object"; C + 2 with a trained outlier class, which stands before it.
    Ready for softmax, whatever the class head."""
    class_distances: tuple[Float[Tensor, "B Q C1"], ...] | None = None
    """Distance to each prototype, in [0, 2 · distance scale]; with class head isomax only."""
    outlier_maps: dict[str, Float[Tensor, "B 1 _h _w"]] | None = None
    """What an outlier head, if there is one, says of the final prediction, by the score's name."""
    num_classes: int = NUM_CLASSES
    """C."""


class EoMT(nn.Module):
    """Encoder-only Mask Transformer of the sizes in a configuration, whose `weights` is not read here."""

    pixel_mean: Tensor
    pixel_std: Tensor
    lora: LoraSettings | None = None
    """The adapters that it carries; set by `models.adapt`."""
    recompute: bool = False
    """Activation checkpointing: blocks keep their input only and run again in the backward pass."""
    stride = 0
    """What image sides have to be multiples of; 0: it takes `image_size` alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        config = config.completed()
        self.config = config
        self.backbone = build_backbone(config.trunk, config.image_size, config.patch_size)
        self.num_blocks = config.num_blocks
        if self.num_blocks > (depth := len(self.backbone.blocks)):
            allowed = f"must be in 1..{depth} for size {config.size}"
            raise InputError(f"model.num_blocks {allowed}, got {self.num_blocks}")
        for block in self.backbone.blocks[depth - self.num_blocks :] if config.trunk.rotary else ():
            attention = cast(Any, block).attn
            attention.num_prefix_tokens += config.num_queries  # the tokens in front that have no position
        width = self.backbone.embed_dim
        self.queries = nn.Embedding(config.num_queries, width)
        self.class_head = _build_class_head(config, width)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        num_upscale = max(1, int(math.log2(config.patch_size)) - 2)  # mask logits at a quarter of the image
        self.upscale = nn.Sequential(*[UpscaleBlock(width) for _ in range(num_upscale)])
        self.set_outlier_head(config.outlier_head)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def set_outlier_head(self, config: OutlierHeadConfig) -> None:
        """Attach a new outlier head, or take off the one that is there where `config` has none."""
        width, head = self.backbone.embed_dim, config.completed(len(self.backbone.blocks))
        self.config = replace(self.config, outlier_head=head)
        self.outlier_head: nn.Module | None = OutlierHead(head, width) if head.width else None
        if head.bank:
            self.outlier_head = TokenBank(head, width, self.config.num_classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it takes."""
        return self.config.image_size

    @property
    def classes(self) -> ClassTable:
        """Names and colours of the closed set."""
        return self.config.class_table

    @property
    def num_queries(self) -> int:
        """Mask proposals per image."""
        return self.config.num_queries

    def forward(
        self,
        image: UInt8[Tensor, "B 3 H W"],
        unmasked: Bool[Tensor, "L B Q"] | None = None,
        num_frozen: int = 0,
    ) -> Prediction:
        """Predict masks and their classes.

        Args:
            image: sRGB in [0, 255]; H and W as `image_size`.
            unmasked: for masked attention: True where a query of one of the last L blocks looks at the
                whole image instead of its own mask. None: no masked attention (inference), and the
                final prediction only.
            num_frozen: first blocks that get gradients of 0, with the embedding, and keep no activations,
                although they may train at other steps. At most those before the joint ones.
        """
        first_joint = len(self.backbone.blocks) - self.num_blocks
        x, rope = self._run_trunk(image, num_frozen)
        read: list[Tensor] = []  # by the outlier head
        depths: list[tuple[Tensor, Tensor, Tensor | None, Tensor]] = []
        for i, block in enumerate(self.backbone.blocks[num_frozen:], start=num_frozen):
            may_look = None
            if i == first_joint:
                queries = self.queries.weight.to(x.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat((queries, x), dim=1)  # (B, T, D)
            if i >= first_joint and unmasked is not None:
                depths.append(self._predict(x))
                may_look = self._may_look(depths[-1][0], unmasked[i - first_joint])
            x = self._run_block(block, x, rope, may_look)
            if i in self.config.outlier_head.blocks:
                read.append(x[:, -math.prod(self.backbone.patch_embed.grid_size) :])
        depths.append(self._predict(x))
        masks, classes, distances, pixels = zip(*depths, strict=True)
        maps, num_classes = None, self.config.num_classes
        if self.outlier_head is not None:
            claims = QueryOutputs(masks[-1], classes[-1], num_classes)
            maps = self.outlier_head(read, self.backbone.patch_embed.grid_size, pixels[-1], claims)
        return Prediction(masks, classes, None if distances[-1] is None else distances, maps, num_classes)

    def _run_trunk(self, image: Tensor, num_frozen: int) -> tuple[Tensor, Tensor | None]:
        """Embed the image and run the blocks that are frozen at this step."""
        if not num_frozen:
            return self._embed(image)
        with torch.no_grad():
            x, rope = self._embed(image)
            for block in self.backbone.blocks[:num_frozen]:
                x = _apply_block(block, x, rope, None)
        # Gradients of exactly 0 instead of none: what data-parallel training waits for on every rank
        frozen = [self.backbone.patch_embed, self.backbone.norm_pre, *self.backbone.blocks[:num_frozen]]
        parameters = [p for module in frozen for p in module.parameters() if p.requires_grad]
        parameters = [p for p in parameters if not hasattr(p, "full_tensor")]  # cut over ranks: nobody waits
        tokens = [self.backbone.cls_token, self.backbone.reg_token, self.backbone.pos_embed]
        parameters += [p for p in tokens if p is not None and p.requires_grad]
        if parameters:
            x = x + 0.0 * torch.stack([p.flatten()[0] for p in parameters]).sum()
        return x, rope

    def _run_block(self, block: nn.Module, x: Tensor, rope: Tensor | None, may_look: Tensor | None) -> Tensor:
        trains = x.requires_grad or any(p.requires_grad for p in block.parameters())
        if self.recompute and trains and torch.is_grad_enabled():
            # dropout draws the same again: `checkpoint` keeps the random state, and the autocast state
            return checkpoint(_apply_block, block, x, rope, may_look, use_reentrant=False)
        return _apply_block(block, x, rope, may_look)

    def _embed(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens, and the rotary positions of the patches where the trunk has those."""
        x = self.backbone.patch_embed((image.float() / 255 - self.pixel_mean) / self.pixel_std)
        embedded = self.backbone._pos_embed(x)
        x, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        return self.backbone.norm_pre(x), rope

    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Read masks, class logits, distances to prototypes, if any, and upscaled patches off the tokens."""
        x = self.backbone.norm(x)
        queries = x[:, : self.num_queries]  # (B, Q, D)
        patches = x[:, self.num_queries + self.backbone.num_prefix_tokens :]  # (B, P, D)
        grid = patches.transpose(1, 2).unflatten(2, self.backbone.patch_embed.grid_size)
        pixels = self.upscale(grid)  # (B, D, h, w)
        masks = torch.einsum("bqd,bdhw->bqhw", self.mask_head(queries), pixels)
        if isinstance(self.class_head, IsoMaxHead):
            distances = self.class_head.distances(queries)
            return masks, self.class_head.to_logits(distances), distances, pixels
        return masks, self.class_head(queries), None, pixels

    def _may_look(self, mask_logits: Tensor, unmasked: Tensor) -> Tensor:
        """Say which tokens each query may attend to: (B, 1, Q, T), shared by the heads.

        Other queries and the prefix tokens always; a patch if the query's mask covers it.
        """
        grid_size = self.backbone.patch_embed.grid_size
        on_patches = F.interpolate(mask_logits.detach().float(), grid_size, mode="bilinear")
        covered = (on_patches > 0).flatten(2) | unmasked[..., None]  # (B, Q, P)
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


def _apply_block(block: Any, x: Tensor, rope: Tensor | None, may_look: Tensor | None) -> Tensor:
    """Run timm's `Block` or `EvaBlock`, the queries' rows of attention masked where `may_look` says so."""
    if may_look is None:
        return block(x) if rope is None else block(x, rope=rope)
    attended = _masked_attention(block.attn, block.norm1(x), rope, may_look)
    if not isinstance(block.attn, EvaAttention):
        x = x + block.drop_path1(block.ls1(attended))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    x = x + block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)
    expanded = block.mlp(block.norm2(x))
    return x + block.drop_path2(expanded if block.gamma_2 is None else block.gamma_2 * expanded)


def _masked_attention(
    attention: Attention | EvaAttention, x: Tensor, rope: Tensor | None, may_look: Tensor
) -> Tensor:
    """Attend with a mask on the query rows and without one on all others."""
    num_queries = may_look.shape[2]
    qkv = attention.qkv(x)
    if isinstance(attention, EvaAttention):
        biases = cast(tuple[Tensor, ...], (attention.q_bias, attention.k_bias, attention.v_bias))
        qkv = qkv + torch.cat(biases).to(qkv.dtype)
    qkv = qkv.unflatten(2, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, head_dim)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rope is not None:
        q, k = _rotate(q, rope), _rotate(k, rope)
    dropout = attention.attn_drop.p if attention.training else 0.0
    from_queries = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, may_look, dropout)
    from_others = F.scaled_dot_product_attention(q[:, :, num_queries:], k, v, None, dropout)
    out = torch.cat((from_queries, from_others), dim=2).transpose(1, 2).flatten(2)  # (B, T, D)
    return attention.proj_drop(attention.proj(out))


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the patches, which stand last, by their positions."""
    others, patches = x[:, :, : -len(rope)], x[:, :, -len(rope) :]
    return torch.cat((others, apply_rot_embed_cat(patches, rope, half=True).type_as(x)), dim=2)
