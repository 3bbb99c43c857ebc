"""Exports of a checkpoint, one function for each kind of file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.calibration import read_calibration
from eval.predict.log_odds import from_log_odds
from eval.predict.own_model import open_own_model, parse_model_file
from eval.predict.score_names import require_scores
from eval.predict.strips import predict_pixels
from eval.predict.windows import ModelSource
from eval.protocol import get_protocol
from eval.sets.frames import read_picture
from eval.submissions.benchmark import BenchmarkImage
from eval.submissions.export import write_predictions
from eval.submissions.package import BENCHMARKS
from jobs.export import ExportOptions
from models.config import METADATA_KEY, ModelConfig, OutlierHeadConfig, describe, read_description
from models.eomt import EoMT
from models.erfnet import ERFNet
from models.onnx import ONNX_NAME, noise, open_graph, write_onnx
from models.segmenter import (
    choose_device,
    hash_checkpoint,
    open_predictor,
    require_readable,
)
from models.weights.adapter import HEAD_NAME, write_adapter, write_head
from models.weights.card import ModelCard, write_card
from models.weights.checkpoint import find_checkpoint, load_model, load_segmenter, open_checkpoint
from models.weights.files import write_weight_file
from models.weights.formats import WEIGHTS_NAME
from models.weights.hub import push_folder, require_repository
from models.weights.huggingface import (
    SHARED_ACTIVATION,
    huggingface_config,
    huggingface_preprocessor,
    to_huggingface,
)
from models.weights.run_files import run_of
from shards.errors import InputError
from shards.files import to_json
from shards.output import staged_folder
from shards.picture import require_sane_size
from shards.schema import CITYSCAPES, NUM_CLASSES, ClassTable

LIBRARIES = {"huggingface": "transformers", "adapter": "peft", "onnx": "onnx"}
"""Kind of export -> the library that loads it, as the hub calls it."""
Written = tuple[str, EoMT | ERFNet | ModelConfig]
"""What is said of an export, and the network that it holds."""


def export(options: ExportOptions) -> str:
    """Export one checkpoint, and say what was written."""
    if options.to in BENCHMARKS:
        return _export_package(options)
    checkpoint = _require_checkpoint(options)
    writers = {
        "safetensors": _export_safetensors,
        "adapter": _export_adapter,
        "outlier_head": _export_head,
        "huggingface": _export_huggingface,
        "onnx": _export_onnx,
    }
    if options.push:
        require_repository(options.push)
    with staged_folder(options.out) as folder:
        summary, model = writers[options.to](checkpoint, options, folder)
        write_card(folder, _card_of(model, checkpoint, options))
    pushed = f"; uploaded to {push_folder(options.out, options.push)}" if options.push else ""
    return f"{options.out}: {summary}{pushed}\n"


def _card_of(model: EoMT | ERFNet | ModelConfig, checkpoint: Path, options: ExportOptions) -> ModelCard:
    config = model.config if isinstance(model, EoMT) else model
    network = "ERFNet, a convolutional network"
    if isinstance(config, ModelConfig):
        height, width = config.image_size
        named = f": {', '.join(config.classes)}" if config.classes else ""
        size = f"windows of {height} x {width}, {config.num_classes} classes{named}"
        network = f"EoMT, trunk {config.trunk}; {size}"
    return ModelCard(
        title=run_of(checkpoint) or checkpoint.resolve().stem,
        library=LIBRARIES.get(options.to, "eomt-anomaly"),
        network=f"{network}. It marks in road scenes what was not in training.",
        origin=config.origin if isinstance(config, ModelConfig) else "",
        checkpoint=checkpoint,
        risk=read_calibration(options.calibration).describe() if options.calibration else "",
    )


def _require_checkpoint(options: ExportOptions) -> Path:
    require_scores((options.score,), "--score")
    assert options.checkpoint is not None
    return find_checkpoint(options.checkpoint)


def _export_package(options: ExportOptions) -> str:
    assert options.datasets is not None
    own = options.model_file
    source = parse_model_file(own)[0] if own else _require_checkpoint(options)

    def open_model(first: BenchmarkImage) -> ModelSource:
        scores, limit = (options.score,), options.windows_at_once
        if not own:
            device, precision = choose_device(options.device), options.precision
            check = _require_benchmark_classes if BENCHMARKS[options.to].needs_classes else None
            known: dict[str, Any] = {"windows_at_once": limit, "setting": "--score", "check_classes": check}
            return open_predictor(source, scores, device, precision, **known)
        model, num_classes = open_own_model(own, read_picture(first.image, first.overlay), scores, "--score")
        if BENCHMARKS[options.to].needs_classes and num_classes != NUM_CLASSES:
            wanted = f"the benchmark wants the {NUM_CLASSES} classes of Cityscapes too"
            raise InputError(f"--to: {wanted}; {own} answers logits of {num_classes}")
        return model

    return write_predictions(
        open_model,
        options.out,
        benchmark=options.to,
        datasets=options.datasets,
        parts=options.parts,
        score=options.score,
        method=options.method or run_of(source) or source.resolve().stem,
    )


def _require_benchmark_classes(classes: ClassTable) -> None:
    advice = "it wants the predicted class of each pixel too"
    classes.require_fit(CITYSCAPES, "--to: the checkpoint", "the benchmark", advice)


def _export_safetensors(checkpoint: Path, options: ExportOptions, folder: Path) -> Written:
    model = load_model(checkpoint, str(options.base or ""))
    if not options.outlier_head:
        model.set_outlier_head(OutlierHeadConfig())
    metadata = {METADATA_KEY: describe(model.config)}
    write_weight_file(model.state_dict(), folder / WEIGHTS_NAME, metadata)
    return f"model.safetensors, {_millions(model)}", model


def _export_adapter(checkpoint: Path, options: ExportOptions, folder: Path) -> Written:
    config = read_description(checkpoint)[0]
    named = options.base or Path(config.weights)
    if named == Path():
        raise InputError(f"--to adapter: {checkpoint} did not start from weights; --base names its base")
    count = write_adapter(folder, checkpoint, open_checkpoint(named))
    return f"LoRA adapter of {count:,} numbers over {named}", config


def _export_head(checkpoint: Path, options: ExportOptions, folder: Path) -> Written:
    model = load_model(checkpoint)
    if model.outlier_head is None:
        raise InputError(f"--to outlier_head: {checkpoint} has none; adapt.mode outlier_head trains one")
    count = write_head(model, folder / HEAD_NAME, base := str(options.base or model.config.weights))
    return f"{HEAD_NAME}, {count:,} numbers, over {base or 'weights without a place'}", model


def _export_huggingface(checkpoint: Path, options: ExportOptions, folder: Path) -> Written:
    model = load_model(checkpoint, str(options.base or ""))
    config = model.config
    table = config.class_table
    wrong = ""
    if config.class_head != "linear":
        wrong = f"transformers' EoMT has a linear class head; {checkpoint} has {config.class_head}"
    elif config.outlier_class == "trained":
        wrong = f"transformers' EoMT has no outlier class; {checkpoint} has one"
    elif not table.is_named:
        unknown = f"{checkpoint} has {config.num_classes} classes, whose names are unknown"
        wrong = f"{unknown}; the {NUM_CLASSES} of Cityscapes are needed, or those of its own shards"
    elif config.trunk.rotary and config.trunk.gated:
        wrong = f"{SHARED_ACTIVATION}; {checkpoint} has {config.trunk}"
    elif not config.trunk.class_token or config.trunk.pre_norm or not config.trunk.registers:
        wrong = f"transformers' EoMT has DINOv2 with registers or DINOv3; {checkpoint} has {config.trunk}"
    if wrong:
        raise InputError(f"--to huggingface: {wrong}")
    (folder / "config.json").write_text(to_json(huggingface_config(config, list(table.names)), indent=2))
    (folder / "preprocessor_config.json").write_text(to_json(huggingface_preprocessor(config), indent=2))
    model.set_outlier_head(OutlierHeadConfig())  # transformers' EoMT has no place for one
    state = to_huggingface(model.state_dict())
    state["attn_mask_probs"] = model.queries.weight.new_zeros(model.num_blocks)  # inference never masks
    write_weight_file(state, folder / WEIGHTS_NAME)
    return f"Hugging Face EoMT, {_millions(model)}", model


def _export_onnx(checkpoint: Path, options: ExportOptions, folder: Path) -> Written:
    model = load_segmenter(checkpoint)
    require_readable(model, (options.score,), f"--score: {checkpoint}")
    provenance = {
        "network": type(model).__name__,
        "checkpoint": str(checkpoint),
        "sha256": hash_checkpoint(checkpoint),
        "producer": f"eomt-anomaly jobs.export, torch {torch.__version__}",
    }
    if isinstance(model, EoMT):
        provenance["origin"] = model.config.origin
    if options.picture is not None:
        require_sane_size(options.picture, "--picture")
    if options.calibration is not None:
        provenance |= _describe_threshold(options, model, provenance["sha256"])
    path, score, half = folder / ONNX_NAME, options.score, options.precision == "fp16"
    difference = write_onnx(model, score, path, provenance, options.picture, half=half)
    height, width = options.picture or model.image_size
    given = "class_map" if options.picture else "class_scores"
    graph = f"model.onnx, uint8 images of {height}x{width} to {given} and score ({score})"
    told = f"{graph}, described in its metadata; onnxruntime differs from torch by {difference:.1e} at most"
    return "\n".join([told, *_time_frames(path, checkpoint, options)]), model


def _describe_threshold(options: ExportOptions, model: EoMT | ERFNet, fingerprint: str) -> dict[str, str]:
    """Return the metadata of a calibration, its threshold on the scale of the graph."""
    assert options.calibration is not None
    found, where = read_calibration(options.calibration), f"--calibration {options.calibration}"
    source = ModelSource(str(options.checkpoint), fingerprint, (options.score,), lambda: None)  # type: ignore
    found.require_of(source, get_protocol("native"), where)
    threshold = from_log_odds(options.score, found.threshold, len(model.classes))
    return {"threshold": repr(threshold), "smallest": str(found.smallest), "risk": found.describe()}


def _time_frames(path: Path, checkpoint: Path, options: ExportOptions) -> list[str]:
    """Return lines with the percentiles of a frame's time, of torch and of the graph."""
    if not options.latency:
        return []
    assert options.picture is not None
    images, device = noise(1, options.picture), choose_device(options.device)
    frame, scores, limit = images[0].permute(1, 2, 0).numpy(), (options.score,), options.windows_at_once
    predictor = open_predictor(checkpoint, scores, device, windows_at_once=limit).load()
    graph = open_graph(path)
    runs: dict[str, Callable[[], object]] = {
        f"torch on {device}": lambda: predict_pixels(predictor(frame), scores),
        "onnxruntime on cpu": lambda: graph(images),
    }
    lines = []
    for name, run in runs.items():
        times = [_time(run) for _ in range(2 + options.latency)][2:]
        middle, late = 1000 * np.percentile(times, (50, 95))
        lines.append(f"{name}: p50 {middle:.1f} ms, p95 {late:.1f} ms per frame, {options.latency} frames")
    return lines


def _time(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _millions(model: EoMT) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
