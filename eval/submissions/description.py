"""What a package holds, written beside its files: `submission.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.errors import InputError
from shards.files import write_atomically

NAME = "submission.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Whose answers a package holds; the benchmarks do not read it."""

    benchmark: str
    method: str
    model: str
    """Where the model was read from."""
    fingerprint: str
    """SHA-256 of the model's weights or code."""
    score: str
    frames: dict[str, tuple[int, int]]
    """(height, width) by key."""

    def differing(self, other: Description) -> list[str]:
        """Name the fields in which two packages differ."""
        mine, others = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != others[name]]


def write_description(description: Description, folder: Path) -> None:
    """Write `submission.json` into a folder."""
    write_atomically(folder / NAME, json.dumps(asdict(description), indent=1) + "\n")


def parse_description(content: bytes, where: str) -> Description:
    """Read `submission.json`.

    Raises:
        InputError: it is not what `write_description` writes.
    """
    try:
        entries = json.loads(content)
        frames = {str(key): (int(h), int(w)) for key, (h, w) in entries.pop("frames").items()}
        return Description(**entries, frames=frames)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where}: is no description of a package: {error!r}") from None
