"""A sweep of fine-tunings: printed, sent to a Slurm that only notes what it is asked, and run here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.golden.bench import ANOMALY, CONFIGS, SHARDS, Bench
from tests.golden.programs import ROOT

SWEEP = """\
name: {name}
out: sweep/sweeps
config: {config}
overrides: {{data.shards: [{shards}], data.crop: [64, 64], model.image_size: [64, 64], loop.steps: 2}}
grid: {{optim.lr: {rates}}}
seeds: {seeds}
resources: {{cpus_per_rank: 2, throttle: 2, time_limit_min: 60}}
evaluation:
  datasets: {datasets}
  options: {{scores: [MSP, RbA], components: false, limit: 1, pictures: 0}}
"""
COMMANDS = {
    "sbatch": 'echo "sbatch $@" >> {folder}/asked\necho $((100 + $(grep -c sbatch {folder}/asked)))',
    "scancel": 'echo "scancel $@" >> {folder}/asked',
    "squeue": "cat {folder}/queue",
    "sacct": "exit 1",
    "scontrol": "exit 1",
}
"""What each command of Slurm does here; jobs are numbered from 101."""
QUEUE = "101_0|RUNNING|5:00|n1|None\n101_2|TIMEOUT|0:00|n1|TimeLimit\n102_1|PENDING|60:00||Dependency\n"


def make_sweep(bench: Bench) -> None:
    """Submit a sweep to nobody, ask what it is doing, cancel it; run another one here."""
    bench.need("world")
    slurm = _pretend_slurm(bench.work / "sweep/slurm")
    path = _write_sweep(bench, "rates", "[1.0e-3, 1.0e-4]", "[0, 1]")
    _note(bench, "status_before", "status", path)
    _note(bench, "dry_run", "submit", path, "--dry-run")
    found = bench.findings
    search, os.environ["PATH"] = os.environ["PATH"], f"{slurm}{os.pathsep}{os.environ['PATH']}"
    try:
        _note(bench, "submit", "submit", path)
        _note_plan(bench, "rates")
        _note(bench, "status", "status", path)
        (slurm / "queue").write_text(QUEUE)
        _note(bench, "status_running", "status", "sweep/sweeps/rates")
        _note(bench, "submit_again", "submit", path)
        _note(bench, "cancel", "cancel", path)
        found.text("sweep/asked", (slurm / "asked").read_text())
    finally:
        os.environ["PATH"] = search
    for example in sorted((ROOT / "slurm/examples").glob("*.yaml")):
        _note(bench, f"examples/{example.stem}", "submit", _beside_configs(bench, example), "--dry-run")
    _run_here(bench)


def _beside_configs(bench: Bench, example: Path) -> str:
    """Copy an example whose configuration is found from the work folder."""
    path = bench.work / "sweep" / example.name
    path.write_text(example.read_text().replace("jobs/configs", str(CONFIGS)))
    return f"sweep/{example.name}"


def _run_here(bench: Bench) -> None:
    """Run the cells of a sweep on this machine; of the status, what no clock decides."""
    path = _write_sweep(bench, "here", "[1.0e-3]", "[0, 1]")
    bench.programs.succeed("submit", path, "--local", 2)
    status = bench.programs.succeed("status", path).printed
    rows = [re.split(r"  +", line)[:3] for line in status.splitlines()]
    found, folder = bench.findings, bench.work / "sweep/sweeps/here"
    found.text("sweep/here/status", "\n".join("  ".join(row) for row in rows))
    found.folder("sweep/here/table", folder / "table")
    for weights in sorted(folder.glob("runs/*/checkpoints/*/model.safetensors")):
        found.file(f"sweep/here/{weights.relative_to(folder).as_posix()}", weights)
    _note(bench, "here/submit_again", "submit", path, "--local", 2)


def _pretend_slurm(folder: Path) -> Path:
    folder.mkdir()
    (folder / "queue").write_text("")
    for name, script in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    return folder


def _write_sweep(bench: Bench, name: str, rates: str, seeds: str) -> str:
    given = {"config": CONFIGS / "demo_baseline.yaml", "shards": SHARDS, "datasets": ANOMALY}
    (bench.work / f"sweep/{name}.yaml").write_text(SWEEP.format(name=name, rates=rates, seeds=seeds, **given))
    return f"sweep/{name}.yaml"


def _note(bench: Bench, name: str, job: str, *words: object) -> None:
    """Note all that a program says."""
    told = bench.programs.run(job, *words)
    bench.findings.long_text(f"sweep/{name}", f"{told.printed}{told.said}exit code {told.code}\n")


def _note_plan(bench: Bench, name: str) -> None:
    """Note tasks, scripts and the cells' configurations."""
    folder = bench.work / "sweep/sweeps" / name
    for path in sorted([*folder.rglob("*.json"), *folder.rglob("*.sbatch"), *folder.rglob("*.yaml")]):
        within = path.relative_to(folder).as_posix()
        bench.findings.long_text(f"sweep/{name}/{within}", path.read_text(encoding="utf-8"))
