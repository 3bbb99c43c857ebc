"""What is in a bank of cut-outs, for people: categories, sizes, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

REPORT_NAME = "report.md"
QUANTILES = (0, 5, 25, 50, 75, 95, 100)


class ObjectSize(NamedTuple):
    """Category and size of one cut-out."""

    category: str
    area: int
    """Pixels of the mask."""
    height: int
    width: int
    """Of the bounding box, in pixels."""


def render_report(funnels: Sequence[str], sizes: Sequence[ObjectSize]) -> str:
    """Render a bank's report as Markdown.

    Args:
        funnels: lines such as `objects: 3 kept; 2 dropped: a crowd`.
        sizes: of every cut-out, at least one.
    """
    lines = ["# Bank of cut-outs", "", "## What was dropped, and why", ""]
    for funnel in funnels:
        unit, _, steps = funnel.partition(": ")
        lines += [f"- {unit}", *(f"  - {step}" for step in steps.split("; "))]
    lines += ["", "## Sizes in pixels", "", "| quantile | area | height | width | fill |"]
    lines.append("|---:|---:|---:|---:|---:|")
    table = np.array([size[1:] for size in sizes], np.float64)
    table = np.column_stack([table, table[:, 0] / (table[:, 1] * table[:, 2])])
    for quantile, values in zip(QUANTILES, np.percentile(table, QUANTILES, axis=0), strict=True):
        area, height, width, fill = values
        lines.append(f"| {quantile} % | {area:.0f} | {height:.0f} | {width:.0f} | {fill:.2f} |")
    counts = Counter(size.category for size in sizes)
    lines += ["", f"## Categories: {len(counts)}", "", "| category | cut-outs | share |", "|---|---:|---:|"]
    for name, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        lines.append(f"| {name} | {count} | {100 * count / len(sizes):.1f} % |")
    return "\n".join(lines) + "\n"
