"""Files are complete or absent; JSON becomes the dataclass it is of, or an error that names the place."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from shards.files import from_json, partial_file, read_json, remove_partials, to_json, write_atomically
from tests.support.refused import refused


@dataclass(frozen=True)
class Wheel:
    size: float
    spokes: int | None = None

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"size is {self.size}; more than 0 is needed")


@dataclass(frozen=True)
class Bicycle:
    name: str
    wheels: tuple[Wheel, ...]
    frame: tuple[int, int]
    kind: Literal["road", "city"] = "city"
    options: Mapping[str, Any] = field(default_factory=dict)
    extras: dict[str, list[float]] = field(default_factory=dict)
    path: Path | None = None


BICYCLE = Bicycle(
    "b", (Wheel(28.0), Wheel(1.5, 32)), (3, 4), "road", {"a": [1, None]}, {"x": [1.0]}, Path("p")
)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_dataclass_comes_back_from_its_json(tmp_path: Path) -> None:
    assert from_json(Bicycle, to_json(BICYCLE), "here") == BICYCLE
    write_atomically(tmp_path / "b.json", to_json([BICYCLE, BICYCLE]))
    assert read_json(list[Bicycle], tmp_path / "b.json") == [BICYCLE, BICYCLE]


def test_fields_with_defaults_may_be_absent_and_integers_are_floats() -> None:
    bicycle = from_json(Bicycle, {"name": "b", "wheels": [{"size": 2}], "frame": [1, 2]}, "here")
    assert bicycle == Bicycle("b", (Wheel(2.0),), (1, 2))
    assert type(bicycle.wheels[0].size) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "here: name is 3; str is needed"),
        (
            {"frane": 3},
            "here: frane: unknown field; perhaps you meant frame; known here: name, wheels, frame, ",
        ),
        ({"name": None}, "here: name is None; str is needed"),
        ({"frame": [1]}, r"here: frame is \[1\]; tuple\[int, int\] is needed"),
        ({"frame": [1, True]}, r"here: frame\[1\] is True; int is needed"),
        ({"kind": "boat"}, "here: kind is 'boat'; one of road, city is needed"),
        ({"wheels": {}}, r"here: wheels is \{\}; tuple"),
        ({"wheels": [{"size": 1}, {}]}, r"here: wheels\[1\]: has no field 'size'"),
        ({"wheels": [{"size": "1"}]}, r"here: wheels\[0\]: size is '1'; float is needed"),
        ({"wheels": [{"size": 0}]}, r"here: wheels\[0\]: size is 0\.0; more than 0 is needed"),
        ({"wheels": [7]}, r"here: wheels\[0\]: is a int; a JSON object is needed"),
        ({"extras": {"x": [None]}}, r"here: extras\.x\[0\] is None; float is needed"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    content = json.loads(to_json(BICYCLE)) | change
    with refused(f"^{message}"):
        from_json(Bicycle, content, "here")


def test_values_without_fields_are_checked_too(tmp_path: Path) -> None:
    with refused(r"^here: is \{\}; list\[int\] is needed"):
        from_json(list[int], "{}", "here")
    with refused(r"b\.json: cannot be read: No such file or directory"):
        read_json(list[int], tmp_path / "b.json")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "before")
    with pytest.raises(UnicodeEncodeError), partial_file(path) as partial:
        partial.write_text("half \udc80", encoding="utf-8")
    assert path.read_text() == "before"
    assert names_in(tmp_path) == ["a"]


def test_what_a_killed_process_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    script = "import os; from pathlib import Path; from shards.files import partial_file\n"
    script += f"with partial_file(Path('{tmp_path}/a')): os.kill(os.getpid(), {signal.SIGKILL})"
    subprocess.run([sys.executable, "-c", script], check=False)
    (tmp_path / ".hidden").write_text("of somebody else")
    assert len(names_in(tmp_path)) == 2
    remove_partials(tmp_path)
    assert names_in(tmp_path) == [".hidden"]


def test_the_module_loads_nothing_but_the_standard_library() -> None:
    script = "import sys; import shards.files; print({'numpy', 'torch', 'yaml', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x: is no valid JSON"),
        ("", "x: is no valid JSON"),
        ("[" * 100_000, r"x: is no valid JSON \("),
        ('{"a":' * 100_000, r"x: is no valid JSON \("),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "x: 'c' is given twice"),
        ("9" * 10_000, r"x: is no valid JSON \(Exceeds"),
        (b"\xff", r"x: is no valid JSON \("),
        ('{"a": "\\n\\u001b[31merror"}', r"x.*\.?a is '\\n\\x1b\[31merror'; int is needed"),
    ],
    ids=lambda text: str(text)[:12],
)
def test_json_that_would_break_its_reader_is_one_short_line(text: str | bytes, message: str) -> None:
    with refused(message) as error:
        from_json(dict[str, int], text, "x")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
