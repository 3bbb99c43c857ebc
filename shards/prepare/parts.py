"""Preparation in several processes that know nothing of each other, and that may be interrupted.

Every task plans the same shards, and writes those whose number modulo the number of tasks is its own into a
folder beside the output, `.NAME.parts`. A shard appears there when it is complete, with its entry of the
manifest beside it, so a task that starts again goes on where it stopped. The task that finds all shards
complete writes the manifest and renames the folder: byte for byte the result of a single process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import from_json, make_folder, remove_partials, require_free, write_atomically
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from shards.prepare.writer import ENTRY_ENDING, ShardPlan, write_shards
from shards.task import Task

PLAN_NAME = "plan.json"
LOCK_NAME = "merge.lock"


def parts_folder(out: Path) -> Path:
    """Return where the finished shards of an unfinished preparation are."""
    return out.absolute().with_name(f".{out.name}.parts")


def write_part(
    plans: Sequence[ShardPlan],
    out: Path,
    task: Task,
    *,
    options: Mapping[str, Any],
    finish: Callable[[tuple[ShardEntry, ...], Path], Manifest],
    workers: int,
    description: str,
) -> Manifest | list[str]:
    """Write a task's share of the shards that are not there yet; the last task completes `out`.

    Args:
        plans: of all tasks.
        options: what the shards are made with; must be equal in all tasks.
        finish: writes the manifest into the folder, given all shards in order.
        workers: see `write_shards`.
        description: see `write_shards`.

    Returns:
        The manifest, or the names of the shards that other tasks have still to write.

    Raises:
        InputError: the parts were begun with other options or other files, or `out` is taken.
    """
    folder = parts_folder(out)
    require_free(out)
    make_folder(folder)
    _require_same_plan(folder, plans, options)
    mine = [plan for i, plan in enumerate(plans) if i % task.count == task.number]
    todo = [plan for plan in mine if not _is_done(folder, plan)]
    if todo:
        write_shards(todo, folder, workers=workers, description=description, record=True)
    missing = [plan.name for plan in plans if not _is_done(folder, plan)]
    return missing or _complete(plans, folder, out, finish)


def _complete(
    plans: Sequence[ShardPlan],
    folder: Path,
    out: Path,
    finish: Callable[[tuple[ShardEntry, ...], Path], Manifest],
) -> Manifest | list[str]:
    """Make `out` of the parts; whichever of several tasks is first does it, under a lock."""
    with contextlib.suppress(FileNotFoundError), (folder / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / MANIFEST_NAME).is_file():  # a task was killed on its way through here
            manifest = read_manifest(folder)
        else:
            manifest = finish(tuple(_read_entry(_entry_path(folder, plan)) for plan in plans), folder)
        for path in [*(_entry_path(folder, plan) for plan in plans), folder / PLAN_NAME, folder / LOCK_NAME]:
            path.unlink(missing_ok=True)
        remove_partials(folder)
        folder.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
        return manifest
    return []  # another task was first


def _is_done(folder: Path, plan: ShardPlan) -> bool:
    return _entry_path(folder, plan).is_file() or (folder / MANIFEST_NAME).is_file()


def _entry_path(folder: Path, plan: ShardPlan) -> Path:
    return folder / (plan.name + ENTRY_ENDING)


def _read_entry(path: Path) -> ShardEntry:
    try:
        return from_json(ShardEntry, path.read_bytes(), str(path))
    except InputError as error:
        raise InputError(f"{path}: is damaged; remove it and run its task again ({error})") from None


def _require_same_plan(folder: Path, plans: Sequence[ShardPlan], options: Mapping[str, Any]) -> None:
    shards = [[plan.name, plan.num_samples] for plan in plans]
    text = json.dumps({"options": options, "shards": shards}, sort_keys=True) + "\n"
    path = folder / PLAN_NAME
    if not path.is_file():
        write_atomically(path, text)
    if (before := path.read_text(encoding="utf-8")) != text:
        changed = _first_difference(json.loads(before), json.loads(text))
        raise InputError(
            f"{folder}: was begun with other {changed}; give the same, or remove the folder to start anew"
        )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    for name in sorted(before["options"].keys() | now["options"].keys()):
        if before["options"].get(name) != now["options"].get(name):
            return f"options ({name}: {before['options'].get(name)}, now {now['options'].get(name)})"
    return f"files ({len(before['shards'])} shards, now {len(now['shards'])}, or other numbers of samples)"
