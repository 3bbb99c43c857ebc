"""The smoke world of `jobs.demo`, its shards by every way to prepare them, and short runs on them."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.golden.bench import CONFIGS, CUTOUTS, RUNS, SHARDS, SMALL, WORLD, Bench, zip_folder

SMOKE = ("--height", 64, "--train", 16, "--val", 3, "--coco", 24, "--anomaly_images", 3)
"""As `jobs.demo --smoke True` draws its world."""
DEMO = ("baseline", "control", "isomax_plus", "logit_norm", "paste_only", "rba", "sole_claim")
PASTES = ("paste_only", "rba", "sole_claim")
CLOCKED = ("to_go", "images_per_s", "data_wait_share", "speed/", "memory/")
"""Columns and scalars that depend on the clock or the machine's memory."""
STEP = re.compile(r"^\S+ \S+ (step \d+/\d+)  (.*)$")


def make_world(bench: Bench) -> None:
    """Draw the world and prepare it: folders, zips, tasks, other encodings, segment maps."""
    programs, found = bench.programs, bench.findings
    programs.succeed("synthesize", "--out", WORLD, "--seed", 0, *SMOKE)
    found.folder("world/drawn", bench.work / WORLD)
    frames = ("cityscapes", "--root", f"{WORLD}/cityscapes", "--samples_per_shard", 16)
    _prepare(bench, "cityscapes", *frames)
    _prepare(bench, "cityscapes_by_tasks", *frames, tasks=2)
    _prepare(bench, "cityscapes_png", *frames, "--image_encoding", "png", "--splits", "val")
    _prepare(bench, "cityscapes_tiles", *frames, "--image_encoding", "tiles", "--splits", "val")
    objects = ("--images", f"{WORLD}/coco/train2017", "--annotations", f"{WORLD}/coco/annotations")
    _prepare(bench, "coco", "coco", *objects)
    _prepare(bench, "coco_by_tasks", "coco", *objects, tasks=2)
    _prepare_zips(bench)
    _prepare_segments(bench)
    validation = (CONFIGS / "demo_rba.yaml", "--data.shards", SHARDS, "--paste.bank", CUTOUTS)
    programs.succeed("paste_validation", *validation, "--out", "world/pasted", "--paste.held_out", 0.3)
    found.folder("world/pasted", bench.work / "world/pasted")
    sheet = ("--out", "world/sheet.png", "--scenes", 4)
    programs.succeed("preview_paste", *validation, *SMALL, *sheet)
    found.file("world/sheet.png", bench.work / "world/sheet.png")


def _prepare(bench: Bench, name: str, *words: object, tasks: int = 0) -> None:
    command = (*words, "--out", f"world/{name}")
    for task in reversed(range(tasks)):
        bench.programs.succeed("prepare", *command, "--task", f"{task}/{tasks}")
    if not tasks:
        bench.programs.succeed("prepare", *command)
    bench.findings.folder(f"world/{name}", bench.work / "world" / name)


def _prepare_zips(bench: Bench) -> None:
    zips = bench.work / "world/zips"
    zips.mkdir()
    for half in ("leftImg8bit", "gtFine"):
        zip_folder(bench.work / WORLD / "cityscapes" / half, zips / f"{half}_trainvaltest.zip")
    zip_folder(bench.work / WORLD / "coco/train2017", zips / "train2017.zip")
    zip_folder(bench.work / WORLD / "coco/annotations", zips / "annotations_trainval2017.zip")
    frames = ("--root", "world/zips", "--samples_per_shard", 16)
    _prepare(bench, "cityscapes_from_zip", "cityscapes", *frames)
    archives = (
        "--images",
        "world/zips/train2017.zip",
        "--annotations",
        "world/zips/annotations_trainval2017.zip",
    )
    _prepare(bench, "coco_from_zip", "coco", *archives)


def _prepare_segments(bench: Bench) -> None:
    """Take the frames' instance maps as segment maps: pictures and maps of the same names."""
    for kind, ending in (("images", "_leftImg8bit.png"), ("maps", "_gtFine_labelIds.png")):
        folder = bench.work / "world/segments" / kind
        folder.mkdir(parents=True)
        for path in sorted((bench.work / WORLD / "cityscapes").rglob(f"train/*/*{ending}")):
            (folder / f"{path.name.removesuffix(ending)}.png").write_bytes(path.read_bytes())
    given = ("--images", "world/segments/images", "--segments", "world/segments/maps", "--min_area", 64)
    _prepare(bench, "cutouts_of_segments", "segments", *given)


def make_losses(bench: Bench) -> None:
    """Take four steps of every demo configuration, and two of other ways to train."""
    bench.need("world")
    for name in DEMO:
        _finetune(bench, name, name, 4)
    _finetune(bench, "lora", "rba", 2, "--adapt.mode", "lora")
    _finetune(bench, "last-2", "rba", 2, "--adapt.mode", "last-2")
    _finetune(bench, "gradual", "control", 2, "--adapt.mode", "gradual")
    outliers = ("--loss.outlier", "energy", "mask2anomaly", "uno", "--model.outlier_class", "trained")
    weights = ("--loss.weights", "mask", 5, "dice", 5, "class", 2, "energy", 1, "mask2anomaly", 1)
    _finetune(bench, "mixture", "paste_only", 2, *outliers, *weights)
    for seed in (0, 1):
        _finetune(bench, f"twin-seed{seed}", "control", 2, "--seed", seed)
    accumulated = ("--data.batch_size", 2, "--loop.grad_accum", 2, "--ema.decay", 0.9)
    sets = ("--validation.shards", SHARDS, "--validation.pasted", "world/pasted", "--paste.held_out", 0.3)
    measured = (*sets, "--loop.eval_every", 1, "--validation.select", "miou")
    _finetune(bench, "validated", "sole_claim", 2, *accumulated, *measured)
    _resume(bench)


def _finetune(bench: Bench, name: str, config: str, steps: int, *words: object) -> None:
    """Train a run, and note its losses and weights."""
    start = ("--model.weights", f"{RUNS}/baseline") if config != "baseline" else ()
    bank = ("--paste.bank", CUTOUTS) if config in PASTES else ()
    place = ("--name", name, "--out", RUNS, "--data.shards", SHARDS)
    often = ("--loop.steps", steps, "--loop.log_every", 1, "--loop.save_every", 2)
    settings = (*place, *often, *SMALL, *start, *bank, *words)
    bench.programs.succeed("finetune", CONFIGS / f"demo_{config}.yaml", *settings)
    _note_run(bench, name)


def _resume(bench: Bench) -> None:
    """Stop a run after two of its four steps, and go on: the losses and weights of one never stopped."""
    place = ("--name", "resumed", "--out", RUNS, "--data.shards", SHARDS)
    alone = ("--data.workers", 0)  # no child of the killed process holds its lock
    often = ("--loop.steps", 4, "--loop.log_every", 1, "--loop.save_every", 1)
    command = (CONFIGS / "demo_baseline.yaml", *place, *SMALL, *alone, *often)
    checkpoint = bench.work / RUNS / "resumed/checkpoints/step-0000002"
    bench.programs.kill_when(checkpoint.is_dir, "finetune", *command)
    bench.programs.succeed("finetune", *command, "--resume")
    last = bench.work / RUNS / "resumed/checkpoints/step-0000004/model.safetensors"
    bench.findings.file("losses/resumed/step-0000004/model.safetensors", last)


def _note_run(bench: Bench, name: str) -> None:
    found, folder = bench.findings, bench.work / RUNS / name
    found.text(f"losses/{name}/log.txt", _plain_log((folder / "log.txt").read_text(encoding="utf-8")))
    found.long_text(f"losses/{name}/config.yaml", (folder / "config.yaml").read_text(encoding="utf-8"))
    for path in sorted(folder.glob("checkpoints/*/model.safetensors")):
        found.file(f"losses/{name}/{path.parent.name}/model.safetensors", path)
    found.text(f"losses/{name}/files", "\n".join(_list_files(folder)))
    found.text(f"losses/{name}/tensorboard", _read_events(folder))


def _plain_log(text: str) -> str:
    """Drop dates and what depends on the clock or the machine's memory."""
    lines = []
    for line in text.splitlines():
        step = STEP.match(line)
        if step is None:
            lines.append(line.split(" ", 2)[-1])
        else:
            columns = [column for column in step[2].split("  ") if not column.startswith(CLOCKED)]
            lines.append("  ".join([step[1], *columns]))
    return "\n".join(lines)


def _list_files(folder: Path) -> list[str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [re.sub(r"events\.out\..*", "events.out.*", name) for name in names]


def _read_events(folder: Path) -> str:
    """List the tags of a run, and every value of those scalars that no clock decides."""
    lines = []
    for events in sorted({path.parent for path in folder.rglob("events.*")}):
        accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0})
        accumulator.Reload()
        tags = accumulator.Tags()
        for kind in ("images", "histograms", "tensors", "graph"):
            lines.append(f"{kind}: {tags[kind]}")
        for tag in sorted(tags["scalars"]):
            values = [f"{event.step}: {event.value!r}" for event in accumulator.Scalars(tag)]
            lines.append(f"{tag}  " + ("" if tag.startswith(CLOCKED) else "  ".join(values)))
    return "\n".join(lines)
