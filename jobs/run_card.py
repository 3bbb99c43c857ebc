"""What a run is, on one card: where it comes from and how it is set, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

CARD_FIELDS = (
    "started",
    "command",
    "commit",
    "uncommitted_changes",
    "seed",
    "num_processes",
    "host",
    "python",
)


def describe_run(provenance: Path, config: Path, facts: list[str]) -> str:
    """Return a card from what the run's folder holds.

    Args:
        provenance: `provenance.json`; its latest entry is shown.
        config: `config.yaml`.
        facts: further lines, such as how many parameters train.
    """
    entry = json.loads(provenance.read_text(encoding="utf-8"))[-1]
    rows = [f"| {name} | `{entry[name]}` |" for name in CARD_FIELDS]
    rows += [f"| {name} | `{version}` |" for name, version in entry["packages"].items()]
    settings = "".join(f"    {line}\n" for line in config.read_text(encoding="utf-8").splitlines())
    said = "\n".join(f"- {fact}" for fact in facts)
    return "\n".join(["| | |", "|---|---|", *rows]) + f"\n\n{said}\n\n{settings}"
