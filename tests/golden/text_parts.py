"""`--help` of every program, and what each says of about ninety mistakes."""

from __future__ import annotations

import shlex

from tests.golden.bench import ANOMALY, CONFIGS, RUNS, SHARDS, WORLD, Bench

HELP = (
    "synthesize", "prepare", "prepare cityscapes", "prepare coco", "prepare segments",
    "finetune", "finetune {configs}/demo_rba.yaml", "preview_paste", "paste_validation",
    "evaluate", "temperature", "collect", "export",
    "doctor", "doctor checkpoint", "doctor shards", "doctor dataset", "doctor submission",
    "submit", "status", "cancel", "demo", "experiments",
)  # fmt: skip
RUN = f"finetune {{configs}}/demo_baseline.yaml --out errors/runs --data.shards {SHARDS}"
EVALUATE = f"evaluate --datasets {ANOMALY} --out errors/new --checkpoint {RUNS}/baseline"
EXPORT = f"export --out errors/new --checkpoint {RUNS}/baseline"
FRAMES = f"prepare cityscapes --root {WORLD}/cityscapes"
OBJECTS = f"prepare coco --images {WORLD}/coco/train2017 --annotations {WORLD}/coco/annotations"
MISTAKES = f"""\
synthesize
synthesize --out errors/full
synthesize --out errors/file/new
synthesize --out errors/new --height 63
synthesize --out errors/new --train 0
synthesize --out errors/new --sped 3
synthesize --out errors/new --seed many
prepare
prepare mapillary
prepare cityscapes --root errors/gone --out errors/new
{FRAMES} --out errors/full
{FRAMES} --out errors/new --jpeg_quality 0
{FRAMES} --out errors/new --samples_per_shard 0
{FRAMES} --out errors/new --task 3/3
{FRAMES} --out errors/new --task three
{FRAMES} --out errors/new --splits holiday
prepare coco --images errors/gone --annotations errors/gone --out errors/new
{OBJECTS} --out errors/new --min_area -1
prepare segments --images errors/empty --segments errors/empty --out errors/new
finetune errors/gone.yaml
finetune errors/unknown.yaml
finetune errors/broken.yaml
finetune errors/list.yaml
finetune --out errors/runs --model.size tiny
{RUN} --data.shards errors/gone
{RUN} --data.shards export/truncated
{RUN} --out {RUNS}
{RUN} --out errors/file
{RUN} --loop.steps 0
{RUN} --loop.steps few
{RUN} --optim.lr nan
{RUN} --loss.name gone
{RUN} --loss.outlier rba
{RUN} --paste.probability 2
{RUN} --adapt.mode last-99
{RUN} --adapt.mode some
{RUN} --model.weights errors/broken.safetensors
{RUN} --data.crop 60 60 --model.image_size 60 60
{RUN} --validation.select miou
{RUN} --lop.steps 3
{RUN} --out {RUNS} --resume --data.crop 64 64 --model.image_size 64 64 --loop.steps 4 --optim.lr 7.0
evaluate --datasets {ANOMALY} --out errors/new
evaluate --datasets {ANOMALY} --checkpoint errors/gone --out errors/new
{EVALUATE} --protocol gone
{EVALUATE} --protocol native native
{EVALUATE} --scores gone
{EVALUATE} --scores MinDistance
{EVALUATE} --device tpu
{EVALUATE} --device cuda
{EVALUATE} --task 0/2 --earlier ignore
{EVALUATE} --task 2/2
{EVALUATE} --limit 0
{EVALUATE} --datasets errors/empty
{EVALUATE} --cityscapes errors/empty
{EVALUATE} --cache errors/cache --protocol course-512
{EVALUATE} --score_maps errors/empty
{EVALUATE} --sets errors/broken.yaml
{EVALUATE} --out errors/full
temperature --cache errors/empty --out errors/new
temperature --cache errors/empty --out errors/new --scores Energy
temperature --cache errors/empty --out errors/new --grid 0
collect --out errors/new
collect errors/gone --out errors/new
collect errors/empty --out errors/new
{EXPORT} --to gone
{EXPORT} --to bravo
{EXPORT} --to onnx --method mine
{EXPORT} --to safetensors --base errors/gone
{EXPORT} --to adapter
{EXPORT} --to smiyc --datasets errors/empty
{EXPORT} --to safetensors --score gone
export --out errors/new --checkpoint {RUNS}/isomax_plus --to huggingface
doctor
doctor checkpoint errors/gone
doctor checkpoint errors/broken.safetensors
doctor shards errors/empty
doctor dataset errors/empty
doctor submission errors/empty
submit errors/gone.yaml
submit errors/unknown.yaml
submit errors/sweep.yaml --local -1
submit errors/sweep.yaml --dry-run
status errors/empty
cancel errors/empty
demo --out errors/full
demo --out errors/new --seed -1
experiments --out errors/new --seeds 1
preview_paste {{configs}}/demo_rba.yaml --out errors/sheet.jpg
preview_paste {{configs}}/demo_baseline.yaml --data.shards {SHARDS} --out errors/sheet.png
paste_validation {{configs}}/demo_rba.yaml --data.shards {SHARDS} --paste.bank errors/empty --out errors/new
"""
FILES = {
    "full/notes.txt": "mine\n",
    "file": "mine\n",
    "unknown.yaml": "colour: green\n",
    "broken.yaml": "name: [\n",
    "list.yaml": "- name\n",
    "broken.safetensors": "no weights\n",
    "sweep.yaml": "name: s\nout: errors/sweeps\nconfig: errors/gone.yaml\ngrid: {optim.lr: []}\n",
}
"""What lies below errors/."""


def make_help(bench: Bench) -> None:
    """Ask every program for help."""
    for line in HELP:
        words = line.format(configs=CONFIGS).split()
        told = bench.programs.run(*words, "--help")
        name = "-".join(word.rpartition("/")[2] for word in words)
        bench.findings.long_text(f"help/{name}", f"{told.printed}{told.said}exit code {told.code}\n")


def make_errors(bench: Bench) -> None:
    """Make every mistake; note exit code, last line of standard error, and which files came or went."""
    bench.need("world", "losses", "export")
    folder = bench.work / "errors"
    (folder / "empty").mkdir()
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    before = _list_paths(bench)
    lines = MISTAKES.splitlines()
    for number, line in enumerate(lines):
        told = bench.programs.run(*shlex.split(line.format(configs=CONFIGS)))
        after = _list_paths(bench)
        changed = "".join(f"\nchanged: {path}" for path in sorted(before ^ after))
        command = line.replace("{configs}", "ROOT/jobs/configs")
        told_lines = f"exit code {told.code}, {len(told.said.splitlines())} lines\n{told.last_line}{changed}"
        bench.findings.text(f"errors/{command}", told_lines)
        if after != before:
            print(f"note: mistake {number} ({command}) changes files")
            before = after


def _list_paths(bench: Bench) -> set[str]:
    """List files below the folders that mistakes name; an index may be written by any reader."""
    folders = [bench.work / name for name in ("errors", "world", "losses")]
    paths = [path.relative_to(bench.work).as_posix() for folder in folders for path in folder.rglob("*")]
    return {path for path in paths if not path.endswith(".index.json")}
