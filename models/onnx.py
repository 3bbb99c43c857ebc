"""ONNX graphs of a network and one anomaly score."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from eval.predict.scores import SCORES
from models.eomt import IMAGENET_MEAN, IMAGENET_STD, EoMT
from models.erfnet import ERFNet
from models.segmenter import num_classes_of, read_prediction, table_of
from shards.errors import InputError

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
        maps = read_prediction(self.model, self.model(image), size, (self.score,), whole=True)
        if self.score in SCORES:
            return maps, SCORES[self.score](maps)
        return maps[:, :-1], maps[:, -1]


def describe_graph(model: EoMT | ERFNet, score: str) -> dict[str, str]:
    """Return what a user of the graph has to know, as texts for its metadata; lists are JSON."""
    num_classes, is_mask_model = num_classes_of(model), isinstance(model, EoMT)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if is_mask_model else ((0.0,) * 3, (1.0,) * 3)
    facts = {
        "input": "image: uint8 (batch, 3, height, width), R G B, sRGB from 0 to 255",
        "image_size": json.dumps(model.image_size),
        "scaling": "inside the graph: (image / 255 - mean) / std",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "output class_scores": "sums of probabilities over queries" if is_mask_model else "logits",
        "output score": f"{score}, higher where more anomalous",
        "score": score,
        "num_classes": str(num_classes),
    }
    classes = table_of(model)
    return facts | ({"classes": json.dumps(classes.names)} if classes.is_named else {})


def write_onnx(model: EoMT | ERFNet, score: str, path: Path, provenance: dict[str, str]) -> float:
    """Write the graph, run it with onnxruntime on random windows, and return the largest difference.

    The batch is dynamic; height and width are the model's. Metadata are `describe_graph` and `provenance`.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'--to onnx: {error.name} is missing; pip install "eomt-anomaly[export]"') from None
    scorer = Scorer(model, score).eval()
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 256, (2, 3, *model.image_size), dtype=torch.uint8, generator=generator)
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    with _silenced():
        program = torch.onnx.export(
            scorer,
            (windows,),
            dynamo=True,
            input_names=["image"],
            output_names=["class_scores", "score"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            custom_translation_table={torch.ops.aten._cdist_forward.default: _translate_cdist},
        )
        assert program is not None
        program.model.metadata_props.update(describe_graph(model, score) | provenance)
        program.save(str(path), external_data=num_bytes > LARGEST_IN_ONE_FILE)
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers = session.run(None, {"image": windows[:1].numpy()})
    with torch.inference_mode():
        expected = scorer(windows[:1])
    return max(float((torch.from_numpy(a) - e).abs().max()) for a, e in zip(answers, expected, strict=True))


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
