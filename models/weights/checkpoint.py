"""Models from paths: a run's newest checkpoint, or weights of any kind in `formats.py`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.backbone import build_backbone, fit_backbone_weights
from models.config import (
    DEFAULT_PATCH_SIZE,
    DESCRIPTION_NAME,
    METADATA_KEY,
    InitConfig,
    ModelConfig,
    OutlierHeadConfig,
    describe,
    parse_description,
    read_description,
)
from models.eomt import EoMT
from models.erfnet import ERFNet, fit_erfnet
from models.heads import IsoMaxHead
from models.weights.adapter import find_head, is_adapter_folder, place_of_base, read_adapter, read_head
from models.weights.files import read_metadata, render_shape
from models.weights.fit import LoadReport, compare_weights, is_under, load_strictly
from models.weights.formats import Checkpoint, find_weight_file, fit_positions, read_checkpoint
from models.weights.hub import localize
from models.weights.run_files import CHECKPOINTS_FOLDER, list_checkpoints
from shards.errors import InputError
from shards.files import write_atomically

logger = logging.getLogger(__name__)


def write_description(model: EoMT, folder: Path) -> None:
    """Write into a checkpoint folder what is needed to rebuild its model."""
    write_atomically(folder / DESCRIPTION_NAME, describe(model.config, model.lora))


def find_checkpoint(path: Path) -> Path:
    """Return the newest checkpoint of the run that `path` is, or `path` itself if it is or holds weights.

    Of `hf:org/name`, that of the local copy.
    """
    path = localize(path)
    try:
        if not path.exists():
            raise InputError(f"checkpoint {path}: no such file or folder")
        if path.is_file() or (path / DESCRIPTION_NAME).is_file() or is_adapter_folder(path):
            return path
    except OSError as error:  # such as a name that is too long, or a folder that may not be entered
        raise InputError(f"checkpoint {path}: {error.strerror or error}") from None
    if inside := [*list_checkpoints(path / CHECKPOINTS_FOLDER), *list_checkpoints(path)]:
        return inside[-1]
    try:
        find_weight_file(path)
    except InputError as error:
        lacking = f"no run folder (with {CHECKPOINTS_FOLDER}/step-NNNNNNN), and no checkpoint"
        reason = str(error).removeprefix(f"weights {path}: ")
        raise InputError(f"checkpoint {path}: {lacking}: {reason}") from None
    return path


def open_checkpoint(path: Path, base: str = "") -> Checkpoint:
    """Read the weights of a run, of an adapter or outlier head with its base, or of any kind in `formats.py`.

    `base`: see `read_checkpoint`; of an outlier head, the EoMT that it goes onto.
    """
    path, base = find_checkpoint(path), str(localize(Path(base))) if base else ""
    if (head := find_head(path)) is not None:
        return read_head(head, open_checkpoint(place_of_base(head, base)))
    return read_adapter(path) if is_adapter_folder(path) and not base else read_checkpoint(path, base)


def describe_head(path: Path) -> OutlierHeadConfig:
    """Return which outlier head our description, beside the weights or in their header, says there is."""
    if (path / DESCRIPTION_NAME).is_file():
        return read_description(path)[0].outlier_head
    text = read_metadata(find_head(path) or find_weight_file(path)).get(METADATA_KEY)
    return parse_description(text, str(path))[0].outlier_head if text else OutlierHeadConfig()


def load_model(path: Path, base: str = "") -> EoMT:
    """Rebuild an EoMT in evaluation mode from a run's newest checkpoint, or any other weights of one."""
    return _build_eomt(open_checkpoint(path, base))


def load_segmenter(path: Path) -> EoMT | ERFNet:
    """Rebuild whatever network `path` holds, an ERFNet `.pth` included, as `load_model` does for EoMT."""
    checkpoint = open_checkpoint(path)
    if checkpoint.kind != "erfnet":
        return _build_eomt(checkpoint)
    model, weights = fit_erfnet(checkpoint.weights, str(checkpoint.path))
    load_strictly(model, weights, str(checkpoint.path))
    return model.eval()


def _build_eomt(checkpoint: Checkpoint) -> EoMT:
    if checkpoint.config is None:
        raise InputError(f"{checkpoint.path}: {checkpoint.title}, no EoMT")
    try_loading(checkpoint, str(checkpoint.path))[1].require_fit(str(checkpoint.path))
    model = EoMT(replace(checkpoint.config, origin=checkpoint.origin))
    load_strictly(model, checkpoint.weights, str(checkpoint.path))
    return model.eval()


def try_loading(
    checkpoint: Checkpoint, where: str, skip: Sequence[str] = ()
) -> tuple[dict[str, Tensor], LoadReport]:
    """Say what loading would take into the model that the weights say they are, and what it would do.

    An EoMT or a backbone takes no memory for it, whatever size a file says it has.
    """
    weights = checkpoint.weights
    if checkpoint.kind == "erfnet":
        model, weights = fit_erfnet(weights, where)
        return weights, compare_weights(model.state_dict(), weights)
    with torch.device("meta"):  # names and shapes are all that is needed
        if checkpoint.config is not None:
            return weights, compare_weights(EoMT(checkpoint.config).state_dict(), weights, skip)
        assert checkpoint.trunk is not None
        patch_size = weights["patch_embed.proj.weight"].shape[-1] or DEFAULT_PATCH_SIZE
        backbone = build_backbone(checkpoint.trunk, (4 * patch_size, 4 * patch_size), patch_size)
    return fit_backbone_weights(backbone, weights, where)


def initialise_model(config: ModelConfig, init: InitConfig | None = None) -> EoMT:
    """Build the EoMT that a fine-tuning starts from, with the weights that `config.weights` names.

    What the configuration leaves out comes from the weights; where both speak they must agree, except that
    another image size resamples the position embedding, that an isomax head starts from a linear one, that a
    class head may gain an outlier class, and that what `init.skip` names may differ.
    """
    skip = init.skip if init else ()
    if not config.weights:
        if config.base:
            raise InputError(f"model.base {config.base}: model.weights, which it is the base of, is empty")
        if skip:
            raise InputError("init.skip: model.weights is empty, there is nothing to skip")
        return EoMT(config)
    checkpoint = open_checkpoint(Path(config.weights), config.base)
    config = replace(config, origin=config.origin or checkpoint.origin)
    config = complete_config(config, checkpoint, skip)
    weights, report = try_loading(checkpoint, where := f"model.weights {checkpoint.path}", skip)
    report.require(weights, where)
    model = EoMT(config)
    report = fill_model(model, checkpoint, skip)
    logger.info("weights: %s, %s: %s", checkpoint.path, checkpoint.title, report)
    for line in (*checkpoint.notes, *explain_report(report)):
        logger.info("  %s", line)
    return model


def complete_config(config: ModelConfig, checkpoint: Checkpoint, skip: Sequence[str] = ()) -> ModelConfig:
    """Fill what `config` leaves out from a checkpoint, and check that both describe the same model.

    They may differ in what the weights do not depend on, and in what `skip` names.
    """
    where = f"model.weights {checkpoint.path}"
    if checkpoint.kind == "erfnet":
        raise InputError(f"{where}: ERFNet weights cannot start an EoMT")
    trunk = checkpoint.config.trunk if checkpoint.config else checkpoint.trunk
    assert trunk is not None
    config = config.over(trunk)
    if checkpoint.config is None:
        if (config.size or config.trunk.width) and config.completed().trunk != trunk:
            wanted = config.completed().trunk
            raise InputError(f"{where}: a backbone of size {trunk}; model.size says {wanted}")
        return replace(config, size="", trunk=trunk).completed()
    completed, saved = config.completed(checkpoint.config), checkpoint.config
    completed = replace(completed, trained_on=saved.join_sets(config.trained_on))
    free = _free_settings(completed, saved, skip)
    if not is_under("class_head.weight", skip) and (config.classes or saved.classes):
        advice = "--init.skip class_head starts its class head anew"  # names, not numbers alone
        saved.class_table.require_fit(completed.class_table, where, "the shards", advice)
        free |= {"num_classes", "classes"}
    differing = [
        f"model.{name} {ours} (checkpoint: {getattr(saved, name)})"
        for name, ours in vars(completed).items()
        if name not in free and ours != getattr(saved, name)
    ]
    if differing:
        wrong = f"the configuration differs from the checkpoint: {', '.join(differing)}"
        remedy = "leave it out, or name what to start anew with --init.skip"
        remedy = f"{remedy} queries, class_head or outlier_head"
        raise InputError(f"{where}: {wrong}; {remedy}")
    return completed


def _free_settings(completed: ModelConfig, saved: ModelConfig, skip: Sequence[str]) -> set[str]:
    """Name the settings in which a model may differ from its weights."""
    free = {"weights", "base", "origin", "trained_on"}
    free |= {"image_size", "num_blocks", "entropic_scale"}  # or in no weight
    free.add("trunk" if completed.size != saved.size else "size")  # which says it in a word, or nothing
    if (completed.class_head, saved.class_head) == ("isomax", "linear"):
        free.add("class_head")  # see `IsoMaxHead.start_from`
    if (completed.outlier_class, saved.outlier_class) == ("trained", "none"):
        free.add("outlier_class")  # see `_with_outlier_row`
    free |= set() if saved.outlier_head.width and not is_under("outlier_head", skip) else {"outlier_head"}
    free |= {"num_queries"} if is_under("queries.weight", skip) else set()
    if is_under("class_head.weight", skip):
        free |= {"num_classes", "classes", "class_head", "outlier_class"}
    return free


def fill_model(model: EoMT, checkpoint: Checkpoint, skip: Sequence[str] = ()) -> LoadReport:
    """Load a checkpoint into a model of completed configuration; on an InputError the model is unchanged.

    A backbone file fills the backbone; queries and heads keep their initial values then.
    """
    names = list(model.state_dict())
    for prefix in skip:
        if not any(is_under(name, [prefix]) for name in names):
            known = f"its parts are {_parts_of(names)}"
            raise InputError(f"init.skip: the model has no weight {prefix!r}; {known}")
    where = f"model.weights {checkpoint.path}"
    if checkpoint.trunk is not None:
        return _fill_backbone(model, checkpoint, skip, where)
    assert checkpoint.config is not None
    weights, resized = fit_positions(checkpoint.weights, checkpoint.config, model.config)
    if model.config.outlier_head != checkpoint.config.outlier_head:
        skip = (*skip, "outlier_head")  # a new one
    if not is_under("class_head.weight", skip):
        weights = _with_outlier_row(weights, checkpoint.config, model)
        if isinstance(model.class_head, IsoMaxHead) and checkpoint.config.class_head == "linear":
            skip = (*skip, "class_head")
            logger.info("weights: %s", model.class_head.start_from(weights["class_head.weight"]))
    return replace(load_strictly(model, weights, where, skip), resized=resized)


def explain_report(report: LoadReport) -> list[str]:
    """Say in lines what was resized and what was left as initialised."""
    shapes = {name: (render_shape(old), render_shape(new)) for name, (old, new) in report.resized.items()}
    lines = [f"resized {name}: {old} -> {new}" for name, (old, new) in shapes.items()]
    return [*lines, f"keep their initial values: {_parts_of(report.skipped)}"] if report.skipped else lines


def _parts_of(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))


def _fill_backbone(model: EoMT, checkpoint: Checkpoint, skip: Sequence[str], where: str) -> LoadReport:
    if any(is_under(name, skip) for name in model.state_dict() if name.startswith("backbone.")):
        raise InputError(f"init.skip: {where} holds a backbone alone; skipping parts of it is not possible")
    fitted, report = fit_backbone_weights(model.backbone, checkpoint.weights, where)
    load_strictly(model.backbone, fitted, where)
    return LoadReport(
        loaded=tuple(f"backbone.{name}" for name in report.loaded),
        resized={f"backbone.{name}": shapes for name, shapes in report.resized.items()},
        skipped=tuple(name for name in model.state_dict() if not name.startswith("backbone.")),
    )


def _with_outlier_row(weights: dict[str, Tensor], saved: ModelConfig, model: EoMT) -> dict[str, Tensor]:
    """Put the model's own row of the outlier class before "no object", if only the model has that class."""
    if saved.outlier_class == model.config.outlier_class:
        return weights
    logger.info("weights: class_head gains a row for the outlier class, at its initial value")
    own = {f"class_head.{name}": value for name, value in model.class_head.state_dict().items()}
    if isinstance(model.class_head, IsoMaxHead):
        own["class_head.weight"] = own["class_head.prototypes"]  # they start from a linear head's rows
    extended = dict(weights)
    for name in own.keys() & weights.keys():
        old = weights[name]
        if old.ndim:  # all but the distance scale
            row = own[name][saved.num_classes, None].to(old)
            extended[name] = torch.cat((old[: saved.num_classes], row, old[-1:]))
    return extended
