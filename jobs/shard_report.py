"""What `jobs.doctor shards` prints."""

from __future__ import annotations

from collections.abc import Mapping

from shards.errors import InputError
from shards.examination import ShardFindings, examine_folder
from shards.schema import CITYSCAPES_CLASSES, OUTLIER_ID, VOID_ID

NAMES = {i: entry.name for i, entry in enumerate(CITYSCAPES_CLASSES)} | {
    OUTLIER_ID: "(outlier)",
    VOID_ID: "(void)",
}
MOST_LINES = 20
"""Problems that are printed one by one; the rest is counted."""


def report_shards(path: str, workers: int = 0) -> None:
    """Read every byte of some shards, and print what is in them.

    Raises:
        InputError: something is wrong with them; all of it was printed.
    """
    found = examine_folder(path, workers)
    print(render_findings(path, found), end="")
    if problems := [problem for findings in found.values() for problem in findings.problems]:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}")
    print("\n  every member was decoded; no problem found")


def render_findings(path: str, found: Mapping[str, ShardFindings]) -> str:
    """Render findings as lines for a terminal."""
    lines = [path]
    for split, findings in found.items():
        lines += ["", f"  {split or 'shards'}"]
        lines.append(
            f"    {findings.num_samples:,} samples in {findings.num_shards} shards, "
            f"{findings.num_bytes / 1e6:,.1f} MB"
        )
        lines.append(f"    members  {', '.join(f'{n:,} {s}' for s, n in sorted(findings.suffixes.items()))}")
        lines += _render_sizes(findings)
        if findings.pixels.any():
            lines += _render_classes(findings)
        if findings.categories:
            common = ", ".join(f"{count:,} {name}" for name, count in findings.categories.most_common(10))
            lines.append(f"    categories {len(findings.categories)}: {common}")
        lines += [f"    problem  {problem}" for problem in findings.problems[:MOST_LINES]]
        if len(findings.problems) > MOST_LINES:
            lines.append(f"    problem  and {len(findings.problems) - MOST_LINES} more")
    return "\n".join(lines) + "\n"


def _render_sizes(findings: ShardFindings) -> list[str]:
    if not findings.sizes:
        return []
    common = findings.sizes.most_common(3)
    told = ", ".join(f"{width} x {height} ({count:,})" for (height, width), count in common)
    more = f" and {len(findings.sizes) - 3} other sizes" if len(findings.sizes) > 3 else ""
    return [f"    pictures {told}{more}"]


def _render_classes(findings: ShardFindings) -> list[str]:
    total = int(findings.pixels.sum())
    lines = [f"    {'value':>5}  {'class':<14}{'pixels':>16}{'share':>10}{'scenes':>9}"]
    for value in sorted({*NAMES, *findings.pixels.nonzero()[0].tolist()}):
        pixels, frames = int(findings.pixels[value]), int(findings.frames[value])
        if pixels or value < len(CITYSCAPES_CLASSES):
            name = NAMES.get(value, "?")
            lines.append(f"    {value:>5}  {name:<14}{pixels:>16,}{pixels / total:>10.5f}{frames:>9,}")
    return lines
