"""What other programs and benchmarks are given, and what `jobs.doctor` says of everything."""

from __future__ import annotations

import json
import re
import shutil

from tests.golden.bench import ANOMALY, CUTOUTS, RUNS, SHARDS, WORLD, Bench

OFFICIAL = "submissions/drawn/official"
ADAPTER = "adapter_config.json"
PACKAGES = (("smiyc", "RbA"), ("fishyscapes", "SoleClaim"), ("bravo", "MSP"))


def make_submissions(bench: Bench) -> None:
    """Draw the benchmarks' own layouts, predict them for each benchmark, and look at the packages."""
    bench.need("world", "losses")
    small = ("--height", 64, "--train", 1, "--val", 3, "--coco", 1, "--anomaly_images", 1, "--official", True)
    bench.programs.succeed("synthesize", "--out", "submissions/drawn", *small)
    found = bench.findings
    found.folder("submissions/official", bench.work / OFFICIAL)
    # Static and Lost & Found both count from 0000, so Fishyscapes is asked for one of them
    parts = {"fishyscapes": ("--parts", "LostAndFound")}
    for benchmark, score in PACKAGES:
        asked = ("--to", benchmark, "--score", score, "--datasets", OFFICIAL, *parts.get(benchmark, ()))
        out = f"submissions/{benchmark}"
        told = bench.programs.succeed("export", "--checkpoint", f"{RUNS}/baseline", *asked, "--out", out)
        found.text(f"{out}/printed", told.printed)
        found.folder(out, bench.work / out)
        _ask_doctor(
            bench, f"{out}/doctor", "submission", out, "--datasets", OFFICIAL, *parts.get(benchmark, ())
        )
    _ask_doctor(bench, "submissions/official/doctor", "dataset", OFFICIAL)
    evaluated = ("--datasets", OFFICIAL, "--scores", "MSP", "--components", False, "--pictures", 0)
    bench.programs.succeed(
        "evaluate", "--checkpoint", f"{RUNS}/baseline", *evaluated, "--out", "submissions/read"
    )
    text = (bench.work / "submissions/read/results.csv").read_text(encoding="utf-8")
    found.long_text("submissions/read/results.csv", text)


def make_export(bench: Bench) -> None:
    """Export a checkpoint to every format but ONNX, and ask the doctor about all that was made."""
    bench.need("world", "losses")
    for name, run, to in (
        ("safetensors", "baseline", "safetensors"),
        ("merged", "lora", "safetensors"),
        ("adapter", "lora", "adapter"),
        ("huggingface", "baseline", "huggingface"),
        ("averaged", "validated", "safetensors"),
    ):
        out = f"export/{name}"
        told = bench.programs.succeed("export", "--checkpoint", f"{RUNS}/{run}", "--to", to, "--out", out)
        bench.findings.text(f"{out}/printed", told.printed)
        bench.findings.folder(out, bench.work / out, lambda within: within != ADAPTER)
    _note_adapter(bench, f"export/adapter/{ADAPTER}")
    for run in ("baseline", "isomax_plus", "lora", "mixture", "validated/best"):
        _ask_doctor(bench, f"export/doctor/{run}", "checkpoint", f"{RUNS}/{run}")
    for name in ("safetensors", "adapter", "huggingface"):
        _ask_doctor(bench, f"export/doctor/exported-{name}", "checkpoint", f"export/{name}", hides_hash=True)
    for name in (SHARDS, CUTOUTS, "world/cityscapes_tiles", "world/cutouts_of_segments"):
        _ask_doctor(bench, f"export/doctor/{name}", "shards", name)
    for name in (f"{WORLD}/cityscapes", f"{WORLD}/coco", ANOMALY):
        _ask_doctor(bench, f"export/doctor/{name}", "dataset", name)
    _ask_doctor(bench, "export/doctor/truncated", "shards", _truncated_shards(bench))


def _truncated_shards(bench: Bench) -> str:
    """Copy shards and cut the end off the first."""
    folder = bench.work / "export/truncated"
    shutil.copytree(bench.work / SHARDS, folder)
    shard = sorted(folder.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-12000])
    return "export/truncated"


def _note_adapter(bench: Bench, path: str) -> None:
    """Note an adapter's settings with its layers sorted: peft writes them in the order of a set."""
    settings = json.loads((bench.work / path).read_text(encoding="utf-8"))
    settings["target_modules"].sort()
    bench.findings.text(path, json.dumps(settings, indent=1))


def _ask_doctor(bench: Bench, name: str, *question: object, hides_hash: bool = False) -> None:
    """Note what the doctor says.

    Args:
        hides_hash: replace hashes of files, which the order of their metadata changes.
    """
    told = bench.programs.run("doctor", *question)
    printed = re.sub(r"sha256 \w{64}", "sha256 HASH", told.printed) if hides_hash else told.printed
    end = f"exit code {told.code}" + (f": {told.last_line}" if told.code else "")
    bench.findings.text(name, f"{printed}{end}\n")
