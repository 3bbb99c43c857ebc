"""Densities and a bank of tokens, of parts that several processes share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eval.key import hash_key
from eval.predict.windows import covering_size, resize_image, to_tensor, window_starts
from eval.store import ALONE, ImageStore, Worker, launched_worker
from jobs.fit_head import FitOptions
from jobs.work.model_options import join_task
from models.config import OutlierHeadConfig
from models.eomt import EoMT
from models.segmenter import choose_device, hash_checkpoint
from models.token_bank import TokenBank, TokenReader, TokenSums, label_patches, sum_tokens
from models.weights.adapter import HEAD_NAME, write_head
from models.weights.checkpoint import find_checkpoint, load_model
from shards.output import require_free, staged_folder
from shards.reader import ShardReader, open_shards
from shards.scene import decode_scene, require_scenes
from shards.schema import NUM_CLASSES

SCENES_PER_PART = 32


def fit_with_others(options: FitOptions) -> str:
    """Fit a head, together with the ranks that a launcher announced, and say what was written."""
    with launched_worker() as worker:
        return fit(options, worker)


def fit(options: FitOptions, worker: Worker = ALONE) -> str:
    """Read what is not read yet of the scenes; the first of several processes fits and writes."""
    require_free(options.out)
    worker = join_task(options.task, worker)
    source = find_checkpoint(options.checkpoint)
    reader = open_shards(options.shards, options.split, "--shards")
    require_scenes(reader)
    count = min(options.limit or len(reader), len(reader))
    model = load_model(source).to(choose_device(options.device))
    model.set_outlier_head(OutlierHeadConfig(bank=options.bank, blocks=options.blocks))
    model.outlier_head = TokenReader()
    facts = {"weights": hash_checkpoint(source), "data": reader.fingerprint(), "seed": str(options.seed)}
    facts |= {"blocks": str(model.config.outlier_head.blocks), "bank": str(options.bank), "count": str(count)}
    facts["sums"] = " ".join(TokenSums._fields)  # a part of before one was added is read anew
    keys = [{"fit": hash_key(facts)}] * math.ceil(count / SCENES_PER_PART)
    store = ImageStore(options.out.with_name(f".{options.out.name}.parts"), keys)
    share = math.ceil(options.bank / NUM_CLASSES)  # of a class
    of_scene = math.ceil(4 * share / count)

    def read(part: int) -> dict[str, np.ndarray]:
        scenes = range(part * SCENES_PER_PART, min((part + 1) * SCENES_PER_PART, count))
        return read_part(model, reader, scenes, options.seed, of_scene)

    store.fill(read, worker, "scenes")
    worker.wait()
    told = _write(options, model, store, share, str(source)) if worker.leads else ""
    worker.wait()
    return told


def read_part(
    model: EoMT, reader: ShardReader, scenes: Sequence[int], seed: int, of_scene: int
) -> dict[str, np.ndarray]:
    """Return the sums over some scenes, and at most `of_scene` tokens of each class of each scene.

    `tokens` come with `classes` and `draws`, a random number each that belongs to the scene.
    """
    total: TokenSums | None = None
    kept: dict[str, list[Tensor]] = {"tokens": [], "classes": [], "draws": []}
    for index in scenes:
        scene = decode_scene(reader, index)
        found = zip(*_read_windows(model, scene.image, scene.label), strict=True)
        tokens, classes, tops = (torch.cat(values) for values in found)
        sums = sum_tokens(tokens, classes, tops.sum(dim=0))
        total = sums if total is None else total + sums
        generator = np.random.default_rng([seed, *scene.key.encode()])
        draws = torch.from_numpy(generator.random(len(tokens)))
        chosen = _lowest(draws, classes, of_scene)
        for name, values in (("tokens", tokens), ("classes", classes), ("draws", draws)):
            kept[name].append(values[chosen])
    assert total is not None
    arrays = {name: torch.cat(values).numpy() for name, values in kept.items()}
    return arrays | {name: value.numpy() for name, value in total._asdict().items()}


def _read_windows(model: EoMT, image: np.ndarray, label: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
    """Yield tokens, classes and top scores of each window, as jobs.evaluate shows it to a network."""
    height, width = model.image_size
    size = covering_size((image.shape[0], image.shape[1]), model.image_size)
    pixels = resize_image(to_tensor(image), size)
    labels = torch.nn.functional.interpolate(torch.from_numpy(label)[None, None].float(), size)  # the nearest
    for top in window_starts(size[0], height):
        for left in window_starts(size[1], width):
            rows, columns = slice(top, top + height), slice(left, left + width)
            with torch.inference_mode():
                maps = model(pixels[None, :, rows, columns].to(model.pixel_mean.device)).outlier_maps
            of_window = labels[:, 0, rows, columns].to(torch.uint8)
            classes = label_patches(of_window, model.config.patch_size, model.config.num_classes)[0]
            assert maps is not None
            known = classes >= 0
            yield maps["tokens"][0].cpu()[known], classes[known], maps["tops"].cpu()[None]


def _lowest(draws: Tensor, classes: Tensor, count: int) -> Tensor:
    """Return the places of the `count` lowest draws of each class, class by class."""
    order = draws.argsort(stable=True)
    places = [order[classes[order] == class_id][:count] for class_id in classes.unique().tolist()]
    return torch.cat(places) if places else order


def _write(options: FitOptions, model: EoMT, store: ImageStore, share: int, source: str) -> str:
    """Add up the parts in their order, write the head, and say so."""

    def joined(name: str) -> Tensor:
        return torch.cat([torch.from_numpy(store.read(part, name)) for part in range(len(store))])

    parts = [[torch.from_numpy(store.read(i, name)) for name in TokenSums._fields] for i in range(len(store))]
    sums = TokenSums(*parts[0])
    for part in parts[1:]:
        sums = sums + TokenSums(*part)
    classes = joined("classes")
    chosen = _lowest(joined("draws"), classes, share)
    config = replace(model.config.outlier_head, bank=max(1, len(chosen)))
    model.cpu().set_outlier_head(config)
    assert isinstance(model.outlier_head, TokenBank)
    model.outlier_head.fill(sums, joined("tokens")[chosen], options.shrinkage)
    with staged_folder(options.out) as folder:
        write_head(model, folder / HEAD_NAME, source)
    store.remove()
    shown = f"{int(sums.counts.sum()):,} patches of {int((sums.counts > 0).sum())} classes"
    return f"{options.out}: {HEAD_NAME}, fitted to {shown}, bank of {len(chosen):,} tokens\n"
