"""The examination of prepared shards: every byte is read, and what was found is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from shards.cores import count_cores
from shards.cutout import CUTOUT_SUFFIXES, decode_cutout
from shards.errors import InputError, and_more, printable
from shards.files import hash_file
from shards.location import Shard, find_shards
from shards.manifest import MANIFEST_NAME, read_manifest
from shards.reader import ShardReader
from shards.scene import EncodedScene, read_scene
from shards.schema import CITYSCAPES, OUTLIER_ID, VOID_ID, ClassTable


@dataclass
class ShardFindings:
    """What was found in some shards."""

    split: str
    classes: ClassTable = CITYSCAPES
    num_shards: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    pixels: Int64[np.ndarray, "256"] = field(default_factory=lambda: np.zeros(256, np.int64))
    """Pixels of each label value, over all scenes."""
    frames: Int64[np.ndarray, "256"] = field(default_factory=lambda: np.zeros(256, np.int64))
    """Scenes that show each label value."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(height, width) of the pictures."""
    categories: Counter[str] = field(default_factory=Counter)
    """Categories of cut-outs."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """Suffixes of all members."""
    problems: list[str] = field(default_factory=list)

    def add(self, other: ShardFindings) -> None:
        """Take in what was found in other shards."""
        for name in (f.name for f in fields(self) if f.name not in ("split", "classes")):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def examine_folder(path: str, workers: int = 0) -> dict[str, ShardFindings]:
    """Hash every shard and decode every member that training would read; return findings by split.

    Bare tar files are one split without a name. What is wrong with the shards is found, not raised.

    Args:
        path: a local one, as `shards.location.find_shards` takes it.
        workers: threads; 0 takes one per processor.
    """
    if (Path(path) / MANIFEST_NAME).is_file():
        splits = read_manifest(Path(path), check_files=False).splits
        shards = {split: find_shards(path, split, check_files=False) for split in splits}
    else:
        shards = {"": find_shards(path, None)}
    found = {split: ShardFindings(split, of_split[0].classes) for split, of_split in shards.items()}
    tasks = [(split, shard) for split, several in shards.items() for shard in several]
    with ThreadPoolExecutor(workers or count_cores()) as pool:  # decoders and hashes hold no lock
        for findings in pool.map(lambda task: _examine_shard(task[1], task[0]), tasks):
            found[findings.split].add(findings)
    for split, several in shards.items():
        if not found[split].problems:
            try:
                ShardReader(several).close()
            except InputError as error:  # two shards share a key
                found[split].problems.append(str(error))
    return found


def _examine_shard(shard: Shard, split: str) -> ShardFindings:
    findings = ShardFindings(split, shard.classes, num_shards=1)
    path = Path(shard.location)
    try:
        findings.num_bytes = path.stat().st_size
        if shard.sha256 is not None and hash_file(path) != shard.sha256:
            findings.problems.append(f"{path}: bytes differ from the manifest's hash")
        reader = ShardReader([shard], split)
    except (OSError, InputError) as error:
        findings.problems.append(str(error) if isinstance(error, InputError) else f"{path}: {error.strerror}")
        return findings
    findings.num_samples = len(reader)
    if not len(reader):
        findings.problems.append(f"{path}: holds no samples")
    for index, key in enumerate(reader.keys):
        findings.suffixes.update(reader.suffixes(index))
        try:
            if set(CUTOUT_SUFFIXES) <= set(reader.suffixes(index)):
                _examine_cutout(key, reader.read(index, CUTOUT_SUFFIXES), findings)
            else:
                _examine_scene(read_scene(reader, index), findings)
        except InputError as error:
            findings.problems.append(f"{path}: {error}")
    reader.close()
    return findings


def _examine_scene(scene: EncodedScene, findings: ShardFindings) -> None:
    scene.picture.decode()
    pixels = np.bincount(scene.label.ravel(), minlength=256)
    findings.pixels += pixels
    findings.frames += pixels > 0
    findings.sizes[scene.picture.shape] += 1


def _examine_cutout(key: str, members: dict[str, bytes], findings: ShardFindings) -> None:
    cutout = decode_cutout(key, members)
    if not (cutout.mask >= 128).any():
        raise InputError(f"cut-out {key}: the mask is empty")
    findings.categories[cutout.category] += 1
    findings.sizes[(cutout.mask.shape[0], cutout.mask.shape[1])] += 1


CLASS_OF_ID_17 = 5
"""Train id of the last class whose label id is below 19: what train ids read as label ids can become."""
MOST_LINES = 20
"""Problems that are printed one by one; the rest is counted."""


def report_shards(path: str, workers: int = 0) -> None:
    """Read every byte of some shards, and print what is in them; the first problem is an InputError."""
    found = examine_folder(path, workers)
    print(render_findings(path, found), end="")
    if not found:
        raise InputError(f"{path}: the manifest lists no shards")
    if problems := [problem for findings in found.values() for problem in findings.problems]:
        raise InputError(f"{problems[0]}{and_more(problems)}")
    print("\n  every member was decoded; no problem found")


def render_findings(path: str, found: Mapping[str, ShardFindings]) -> str:
    """Render findings as lines for a terminal."""
    lines = [path]
    for split, part in found.items():
        size = f"{part.num_shards} shards, {part.num_bytes / 1e6:,.1f} MB"
        lines += ["", f"  {split or 'shards'}", f"    {part.num_samples:,} samples in {size}"]
        lines.append(f"    members  {', '.join(f'{n:,} {s}' for s, n in sorted(part.suffixes.items()))}")
        if part.sizes:
            common = [f"{width} x {height} ({n:,})" for (height, width), n in part.sizes.most_common(3)]
            more = f" and {len(part.sizes) - 3} other sizes" if len(part.sizes) > 3 else ""
            lines.append(f"    pictures {', '.join(common)}{more}")
        lines += _render_classes(part)
        if part.categories:
            common = [f"{count:,} {name}" for name, count in part.categories.most_common(10)]
            lines.append(f"    categories {len(part.categories)}: {', '.join(common)}")
        lines += [f"    warning  {warning}" for warning in _suspect_labels(part)]
        lines += [f"    problem  {problem}" for problem in part.problems[:MOST_LINES]]
        if len(part.problems) > MOST_LINES:
            lines.append(f"    problem  and {len(part.problems) - MOST_LINES} more")
    return "\n".join(map(printable, lines)) + "\n"


def _suspect_labels(findings: ShardFindings) -> list[str]:
    """Name what is allowed, and yet is a mistake as a rule."""
    shown, warnings = np.flatnonzero(findings.pixels).tolist(), []
    void = findings.pixels[VOID_ID] / max(1, findings.pixels.sum())
    if findings.classes != CITYSCAPES:
        return []
    classes = [value for value in shown if value < OUTLIER_ID]
    if void > 0.5 and len(classes) >= 3 and max(classes) <= CLASS_OF_ID_17:
        lacking = f"no class from {CITYSCAPES.names[CLASS_OF_ID_17 + 1]} on, and {void:.0%} void"
        warnings.append(f"{lacking}: were these labels made of labelIds files that held train ids?")
    if shown == [0, VOID_ID]:
        rule = f"an outlier is {OUTLIER_ID} in a label, 0 is road"
        warnings.append(f"the labels hold 0 and {VOID_ID} alone: if they are masks, {rule}")
    return warnings


def _render_classes(findings: ShardFindings) -> list[str]:
    if not (total := int(findings.pixels.sum())):
        return []
    names = dict(enumerate(findings.classes.names))
    names |= {OUTLIER_ID: "(outlier)", VOID_ID: "(void)"}
    lines = [f"    {'value':>5}  {'class':<14}{'pixels':>16}{'share':>10}{'scenes':>9}"]
    for value, (pixels, frames) in enumerate(zip(findings.pixels, findings.frames, strict=True)):
        if pixels or value < len(findings.classes):
            share = f"{pixels / total:>10.5f}{frames:>9,}"
            lines.append(f"    {value:>5}  {names.get(value, '?'):<14}{pixels:>16,}{share}")
    return lines
