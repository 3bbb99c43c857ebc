"""The model card of an export: its origin, training and numbers, and hashes of the files beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.report.record import Record, parse_json
from eval.report.tables import render_markdown
from models.weights.run_files import CONFIG_NAME, run_of
from shards.errors import InputError
from shards.files import hash_file
from shards.settings import read_settings

CARD_NAME = "README.md"
OURS = "eomt_anomaly"
"""Key of our own facts in the head of a card: hashes of the files beside it."""
_MARK = re.compile(r"\n<!-- sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")
_MEASURED = {"ap": "average_precision", "fpr95": "fpr95", "auroc": "auroc", "miou": "mean_iou", "ece": "ece"}
"""Rate of a record -> type of a metric on the hub."""
DINOV3_LINK = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Facts of an export."""

    title: str
    library: str
    """Name of the library that loads it, as the hub calls it."""
    network: str
    """One sentence."""
    origin: str
    """As `ModelConfig.origin`; empty: trained from scratch, or not known."""
    checkpoint: Path
    """The checkpoint that is exported."""
    risk: str = ""
    """What was promised of the calibrated threshold that goes along; empty: none does."""


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card beside the complete files of an export; equal files give equal bytes."""
    records = find_records(card.checkpoint)
    head: dict[str, Any] = {
        **_license_of(card.origin),
        "library_name": card.library,
        "pipeline_tag": "image-segmentation",
        "tags": ["eomt", "anomaly-segmentation", "semantic-segmentation"],
    }
    if records:
        head["model-index"] = [{"name": card.title, "results": [_result_of(record) for record in records]}]
    head[OURS] = {"files": _hash_files(folder)}
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=110)
    numbers = "None: no results of this checkpoint were beside it."
    if records:
        numbers = f"In percent; brackets: 95 % intervals over images.\n\n{render_markdown(records).strip()}"
    origin = card.origin or "not known: trained from scratch, or weights without a word on it"
    sections = {
        "Base weights": f"Origin: {origin}. The licence of the first weights holds for these too.",
        "Trained on": _describe_training(card.checkpoint),
        "Numbers": numbers,
        **({"Calibrated risk": card.risk} if card.risk else {}),
        "Files": "`python -m jobs.doctor checkpoint FOLDER` compares them with the hashes above.",
    }
    body = "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())
    text = f"---\n{front}---\n\n# {card.title}\n\n{card.network}\n{body}"
    mark = f"\n<!-- sha256 of the text above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"
    (folder / CARD_NAME).write_text(text + mark, encoding="utf-8")


def check_card(place: Path) -> str:
    """Hold an export, or the one that a file is of, against its card, and return a word on it.

    Where there is no card of ours it is empty.

    Raises:
        InputError: the card, or a file beside it, is not as the export left it.
    """
    try:
        folder = place if place.is_dir() else place.parent
        path = folder / CARD_NAME
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except OSError:  # which whoever reads the weights explains
        return ""
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no UTF-8; a card of jobs.export is") from None
    mark = _MARK.search(text)
    if f"\n{OURS}:" not in text and mark is None:
        return ""
    if mark is None or hashlib.sha256(text[: mark.start()].encode()).hexdigest() != mark[1]:
        remedy = "numbers and hashes in it hold no more; export again, and put remarks into another file"
        raise InputError(f"{path}: was edited after the export; {remedy}")
    listed: dict[str, str] = yaml.safe_load(text.split("---\n")[1])[OURS]["files"]
    found = _hash_files(folder)
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{folder / name}: is missing; {CARD_NAME} says that the export holds it")
        if listed.get(name) != found[name]:
            wrong = "is another file than" if name in listed else "is not in"
            raise InputError(f"{folder / name}: {wrong} what was exported, says {CARD_NAME}")
    return f"{CARD_NAME}, which holds for the {len(found)} files beside it"


def find_records(checkpoint: Path) -> list[Record]:
    """Return the results in the folder of a checkpoint's run, or in its own, that are of this checkpoint."""
    place = checkpoint.resolve()
    folder = place.parent.parent if run_of(checkpoint) else place
    records = []
    for path in sorted(folder.glob("*/results.json")):
        records += parse_json(path.read_text(encoding="utf-8"), str(path))
    return [record for record in records if Path(record.checkpoint).parts[-2:] == place.parts[-2:]]


def _result_of(record: Record) -> dict[str, Any]:
    """Return an entry of `model-index`: rates as fractions, with their 95 % intervals."""
    metrics = []
    for name, kind in _MEASURED.items():
        if (value := getattr(record, name)) is not None:
            interval = getattr(record, f"{name}_ci")
            more = {"score": record.method, "interval_95": list(interval) if interval else None}
            metrics.append({"type": kind, "value": value, "name": f"{name} of {record.method}", "args": more})
    slug = re.sub(r"[^a-z0-9]+", "-", record.dataset.lower()).strip("-")
    dataset: dict[str, Any] = {"type": slug, "name": record.dataset, "config": record.protocol}
    dataset["args"] = {"images": record.num_images, "pixels": record.num_pixels, "limit": record.limit}
    task = {"type": "image-segmentation", "name": "Anomaly segmentation"}
    return {"task": task, "dataset": dataset, "metrics": metrics}


def _license_of(origin: str) -> dict[str, str]:
    """Return what the hub has for the licence that `origin` names."""
    file, _, name = origin.lower().partition("licence: ")
    if "dinov3" in name:
        return {"license": "other", "license_name": "dinov3-license", "license_link": DINOV3_LINK}
    if name.strip() == "apache-2.0" or (file.startswith("dinov2") and "apache-2.0" in name):
        return {"license": "apache-2.0"}
    slug = re.sub(r"[^a-z0-9.]+", "-", name.partition(",")[0].partition("(")[0]).strip("-")
    return {"license": "other", "license_name": slug} if slug else {"license": "unknown"}


def _describe_training(checkpoint: Path) -> str:
    """Describe data and length by the settings of the checkpoint's run; paths by their last word."""
    config = checkpoint.resolve().parent.parent / CONFIG_NAME
    if not run_of(checkpoint) or not config.is_file():
        return "Not known: the checkpoint was in no folder of a run."
    settings = read_settings(config)

    def named(places: object) -> str:
        return ", ".join(f"`{Path(str(place)).name}`" for place in places) if isinstance(places, list) else ""

    data, paste, loss, loop = (_section(settings, name) for name in ("data", "paste", "loss", "loop"))
    bank = f"; pasted from {named([paste['bank']])}" if paste.get("bank") else "; nothing pasted"
    outlier = ", ".join(map(str, loss.get("outlier") or ())) or "none"
    terms = f"classification `{loss.get('classification')}`, outlier terms: {outlier}"
    length = f"{loop.get('steps')} steps, step of this checkpoint: `{checkpoint.resolve().name}`"
    return f"Shards {named(data.get('shards'))}{bank}; {terms}; {length}."


def _section(settings: Any, name: str) -> Mapping[str, Any]:
    found = settings.get(name) if isinstance(settings, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _hash_files(folder: Path) -> dict[str, str]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: hash_file(path) for path in sorted(files) if path.name != CARD_NAME}
