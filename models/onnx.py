"""ONNX graphs of a network and one anomaly score."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from eval.predict.scores import SCORES
from eval.predict.windows import covering_size, window_starts
from models.eomt import IMAGENET_MEAN, IMAGENET_STD, EoMT
from models.erfnet import ERFNet
from models.segmenter import read_prediction
from shards.errors import InputError

ONNX_NAME = "model.onnx"
LARGEST_IN_ONE_FILE = 1.8e9
"""Bytes of weights; protobuf ends at 2 GiB, and more weights get a file of their own."""


class Scorer(nn.Module):
    """Deployed detector: windows of pixels to class scores and one anomaly score."""

    def __init__(self, model: EoMT | ERFNet, score: str) -> None:
        super().__init__()
        self.model = model
        self.score = score

    def forward(
        self, image: UInt8[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B H W"]]:
        """Return class scores per class and the anomaly score, higher where more anomalous."""
        size = (image.shape[-2], image.shape[-1])
        return self.split(read_prediction(self.model, self.model(image), size, (self.score,), whole=True))

    def split(
        self, maps: Float[Tensor, "B N H W"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B H W"]]:
        """Part maps of `read_prediction` into class scores and the anomaly score."""
        if self.score in SCORES:
            return maps, SCORES[self.score](maps)
        return maps[:, :-1], maps[:, -1]


class PictureScorer(Scorer):
    """Deployed detector of whole pictures of one size: windows are cut, averaged and resized inside."""

    rows: Tensor
    columns: Tensor
    counts: Tensor

    def __init__(self, model: EoMT | ERFNet, score: str, picture: tuple[int, int]) -> None:
        super().__init__(model, score)
        stride = model.stride
        self.content = covering_size(picture, model.image_size, stride or 1)
        self.window = self.content if stride else model.image_size
        self.starts = [window_starts(*pair) for pair in zip(self.content, self.window, strict=True)]
        for i, name in enumerate(("rows", "columns")):
            self.register_buffer(name, _resizing_matrix(picture[i], self.content[i]), persistent=False)
        counts = [torch.zeros(side) for side in self.content]  # of windows over a pixel, along each axis
        for count, starts, side in zip(counts, self.starts, self.window, strict=True):
            for start in starts:
                count[start : start + side] += 1
        self.register_buffer("counts", counts[0][:, None] * counts[1], persistent=False)

    def forward(
        self, image: UInt8[Tensor, "1 3 H W"]
    ) -> tuple[UInt8[Tensor, "1 H W"], Float[Tensor, "1 H W"]]:
        """Return the predicted classes and the anomaly score of `eval.predict.windows.predict_in_windows`."""
        (high, wide), (height, width) = self.window, self.content
        native = (image.shape[-2], image.shape[-1])
        seen = image
        if self.content != native:
            seen = (self.rows @ image.float() @ self.columns.T).round().clamp(0, 255).to(torch.uint8)
        corners = [(y, x) for y in self.starts[0] for x in self.starts[1]]
        windows = torch.cat([seen[..., y : y + high, x : x + wide] for y, x in corners])
        maps = read_prediction(self.model, self.model(windows), self.window, (self.score,), whole=True)
        total = torch.zeros(1)
        for part, (y, x) in zip(maps, corners, strict=True):
            total = total + F.pad(part, (x, width - x - wide, y, height - y - high))
        maps = (total / self.counts)[None]
        if self.content != native:
            maps = F.interpolate(maps, size=native, mode="bilinear", align_corners=False)
        class_scores, score = self.split(maps)
        return class_scores.argmax(dim=1).to(torch.uint8), score


def _resizing_matrix(old: int, new: int) -> Float[Tensor, "new old"]:
    """Return the weights of `eval.predict.windows.resize_image` along one axis.

    As a product it needs no operator that runtimes lack; TensorRT has no resizing with a low-pass filter.
    """
    unit = torch.eye(old)[None, None]
    return F.interpolate(unit, size=(new, old), mode="bilinear", antialias=True)[0, 0]


def describe_graph(
    model: EoMT | ERFNet, score: str, picture: tuple[int, int] | None = None
) -> dict[str, str]:
    """Return what a user of the graph has to know, as texts for its metadata; lists are JSON."""
    is_mask_model, classes = isinstance(model, EoMT), model.classes
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if is_mask_model else ((0.0,) * 3, (1.0,) * 3)
    facts = {
        "input": "image: uint8 (batch, 3, height, width), R G B, sRGB from 0 to 255",
        "image_size": json.dumps(picture or model.image_size),
        "scaling": "inside the graph: (image / 255 - mean) / std",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "output score": f"{score}, higher where more anomalous",
        "score": score,
        "num_classes": str(len(classes)),
    }
    if picture is None:
        facts["output class_scores"] = "sums of probabilities over queries" if is_mask_model else "logits"
    else:
        facts["output class_map"] = "number of the class of largest score"
    return facts | ({"classes": json.dumps(classes.names)} if classes.is_named else {})


def write_onnx(
    model: EoMT | ERFNet,
    score: str,
    path: Path,
    facts: dict[str, str],
    picture: tuple[int, int] | None = None,
    *,
    half: bool = False,
) -> float:
    """Write the graph, run it with onnxruntime on noise, and return the largest difference of its scores.

    Args:
        facts: metadata beside those of `describe_graph`.
        picture: (H, W) of whole pictures, one at a time; None: windows of the model's size, of which the
            batch is dynamic.
        half: compute the network in float16; what is before and behind it stays float32.
    """
    require_onnx("--to onnx")
    import onnx

    scorer = (PictureScorer(model, score, picture) if picture else Scorer(model, score)).eval()
    images = noise((1 if picture else 2), picture or model.image_size)
    with _silenced():
        program = _trace(scorer, images, is_of_windows=picture is None)
        program.model.metadata_props.update(describe_graph(model, score, picture) | facts)
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        program.save(str(path), external_data=num_bytes > LARGEST_IN_ONE_FILE)
        if half:
            _halve(path)
    onnx.checker.check_model(str(path))
    with torch.inference_mode():
        expected = scorer(images[:1])
    pairs = zip(open_graph(path)(images[:1]), expected, strict=True)
    return max(float((torch.from_numpy(a) - e).abs().max()) for a, e in pairs if e.is_floating_point())


def _trace(scorer: Scorer, images: UInt8[Tensor, "B 3 H W"], *, is_of_windows: bool) -> Any:
    program = torch.onnx.export(
        scorer,
        (images,),
        dynamo=True,
        input_names=["image"],
        output_names=["class_scores" if is_of_windows else "class_map", "score"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}} if is_of_windows else None,
        custom_translation_table={torch.ops.aten._cdist_forward.default: _translate_cdist},
    )
    assert program is not None
    return program


def require_onnx(setting: str) -> None:
    """Check that what writes and runs graphs is installed."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f'{setting}: {name} is missing; pip install "eomt-anomaly[export]"')


def open_graph(path: Path) -> Callable[[UInt8[Tensor, "B 3 H W"]], list[np.ndarray]]:
    """Open a graph with onnxruntime, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images.numpy()})


def noise(count: int, size: tuple[int, int]) -> UInt8[Tensor, "B 3 H W"]:
    """Return images of noise, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def _halve(path: Path) -> None:
    """Turn the network's part of a graph to float16, in place."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = onnx.load(str(path))
    kept = [node.name for node in graph.graph.node if not _is_of_network(node)]
    halved = OnnxModel(convert_float_to_float16(graph, keep_io_types=True, node_block_list=kept))
    halved.topological_sort()
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # half of it fits into one file
    onnx.save(halved.model, str(path))


def _is_of_network(node: Any) -> bool:
    scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    return "'model'" in scopes


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep back the exporter's hundred lines: prints, warnings, and all records below errors."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _translate_cdist(first: Any, second: Any, p: float, _compute_mode: int | None) -> Any:
    """Give `torch.cdist`, of the isomax head, the translation that the exporter lacks."""
    from onnxscript import opset18

    assert p == 2.0
    axes: list[Any] = [opset18.Constant(value_ints=[axis]) for axis in (-1, -2, -3)]
    last, before, outer = axes
    differences = opset18.Sub(opset18.Unsqueeze(first, before), opset18.Unsqueeze(second, outer))
    return opset18.ReduceL2(differences, last, keepdims=0)
