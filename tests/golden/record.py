"""What is frozen: artefact -> hash or text, as JSON that a diff of two versions can be read in."""

from __future__ import annotations

import difflib
import hashlib
import json
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

from tests.golden.programs import ROOT

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "record.json"
TEXTS = FOLDER / "texts"
"""Long texts, one file each, of which the record has the hash."""
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "peft",
    "numpy",
    "opencv-python",
    "tyro",
    "matplotlib",
)
Value = str | list[str]
"""A hash, or the lines of a text."""
DIFF_LINES = 30


class Findings:
    """What was found this time."""

    def __init__(self, work: Path) -> None:
        """Start with nothing found."""
        self.values: dict[str, Value] = {}
        self.texts: dict[str, str] = {}
        """Of artefacts whose text lies in a file of its own."""
        self._replaced = ((sys.executable, "PYTHON"), (str(work), "WORK"), (str(ROOT), "ROOT"))
        """What differs between two machines or folders: interpreter, work folder, checkout."""

    def text(self, name: str, text: str) -> None:
        """Note a text, with the names of folders replaced."""
        self.values[name] = self.plain(text).splitlines()

    def long_text(self, name: str, text: str) -> None:
        """Note a text whose lines lie in a file of their own."""
        self.texts[name] = self.plain(text)
        self.values[name] = f"sha256:{_hash(self.texts[name].encode())}"

    def hashed_text(self, name: str, text: str) -> None:
        """Note the hash of a text, with the names of folders replaced; its lines are noted elsewhere."""
        self.values[name] = f"sha256:{_hash(self.plain(text).encode())}"

    def file(self, name: str, path: Path) -> None:
        """Note the hash of a file's bytes, with the names of folders replaced."""
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            content = _with_sorted_header(content)
        for folder, word in self._replaced:
            content = content.replace(folder.encode(), word.encode())
        self.values[name] = f"sha256:{_hash(content)}"

    def folder(self, name: str, folder: Path, takes: Callable[[str], bool] = lambda _: True) -> None:
        """Note the hash of every file below a folder, by its path within.

        Args:
            takes: says of a path within whether it counts.
        """
        for path in sorted(folder.rglob("*")):
            within = path.relative_to(folder).as_posix()
            if path.is_file() and takes(within):
                self.file(f"{name}/{within}", path)

    def plain(self, text: str) -> str:
        """Replace the names of folders."""
        for folder, word in self._replaced:
            text = text.replace(folder, word)
        return text


def _with_sorted_header(content: bytes) -> bytes:
    """Sort the header of a safetensors file, whose library writes metadata in an order of chance."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe_machine() -> dict[str, str]:
    """Return what the bits of floats depend on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    named = {
        key: re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE) for key in ("model name", "model", "flags")
    }
    found = {key: match[1] for key, match in named.items() if match}
    flags = found.pop("flags", "").split()
    found["vectors"] = " ".join(flag for flag in flags if flag.startswith(("avx", "amx", "fma")))
    found |= {name: metadata.version(name) for name in PACKAGES}
    return {**found, "python": platform.python_version()}


def read_record() -> tuple[dict[str, str], dict[str, Value], dict[str, str]]:
    """Return machine, artefacts and long texts of the record; all empty where there is none."""
    if not RECORD.is_file():
        return {}, {}, {}
    content = json.loads(RECORD.read_text(encoding="utf-8"))
    artefacts = content["artefacts"]
    files = {name: _text_file(name) for name in artefacts}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    return content["machine"], artefacts, texts


def write_record(findings: Findings, parts: Iterable[str]) -> None:
    """Put what was found in these parts in the place of what the record has of them."""
    _, kept, texts = read_record()
    own = tuple(f"{part}/" for part in parts)
    for name in texts:
        if name.startswith(own):
            _text_file(name).unlink()
    artefacts = {name: value for name, value in kept.items() if not name.startswith(own)} | findings.values
    content = {"machine": describe_machine(), "artefacts": artefacts}
    RECORD.write_text(
        json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for name, text in findings.texts.items():
        path = _text_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _text_file(name: str) -> Path:
    return TEXTS / f"{name}.txt"


def compare(findings: Findings, parts: Iterable[str]) -> list[str]:
    """Return one text for each artefact of these parts that is new, gone, or differs."""
    _, kept, texts = read_record()
    own = tuple(f"{part}/" for part in parts)
    before: Mapping[str, Value] = {name: value for name, value in kept.items() if name.startswith(own)}
    told = []
    for name in sorted(before.keys() | findings.values.keys()):
        if name not in findings.values:
            told.append(f"{name}: is gone")
        elif name not in before:
            told.append(f"{name}: is new")
        elif before[name] != findings.values[name]:
            old = _lines(before[name], texts.get(name))
            told.append(
                f"{name}: differs\n" + _diff(old, _lines(findings.values[name], findings.texts.get(name)))
            )
    return told


def _lines(value: Value, text: str | None) -> list[str]:
    if text is not None:
        return text.splitlines()
    return [value] if isinstance(value, str) else value


def _diff(old: list[str], new: list[str]) -> str:
    lines = list(difflib.unified_diff(old, new, "record", "now", n=1, lineterm=""))
    more = [f"... and {len(lines) - DIFF_LINES} lines more"] if len(lines) > DIFF_LINES else []
    return "\n".join(f"    {line}" for line in [*lines[:DIFF_LINES], *more])
