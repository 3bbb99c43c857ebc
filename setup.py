"""The wheel: one package `eomt_anomaly`, put together of the top-level folders when it is built.

In the repository the folders import each other by their own names, which are generic: installed as they are,
they would hide other people's `models` or `jobs`. So a wheel holds them below one name, and every dotted name
of one of our modules gets it in front: in imports, in commands (`-m`) and in texts. `pip install -e` leaves
all as it is.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

NAME = "eomt_anomaly"
FOLDERS = ("jobs", "trainer", "outlier_paste", "shards", "slurm", "eval", "models")
DATA = {
    "jobs": ["configs/*.yaml", "classes/*.yaml"],
    "eval": ["report/page.html", "sets/known_frames.txt"],
    "slurm": ["examples/*.yaml", "containers/*"],
}
IN_PLACE = not {"editable_wheel", "develop"}.isdisjoint(sys.argv)
BEFORE = "" if IN_PLACE else f"{NAME}."
ROOT = Path(__file__).resolve().parent
DOTTED = re.compile(rf"(?<![\w./-])({'|'.join(FOLDERS)})\.(\w+|\{{)")


def qualify(text: str) -> str:
    """Write `eomt_anomaly.` before the dotted names of our modules; `f"jobs.{name}"` is one."""

    def written(found: re.Match[str]) -> str:
        place = ROOT / found[1] / found[2]
        is_module = found[2] == "{" or place.is_dir() or place.with_suffix(".py").is_file()
        return f"{NAME}.{found[0]}" if is_module else found[0]

    return DOTTED.sub(written, text)


class BuildInOne(build_py):
    """Copies the folders to below one name, and rewrites their modules and examples."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # what an earlier build has left
        super().run()
        for path in () if self.editable_mode else sorted(Path(self.build_lib, NAME).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                text = qualify(path.read_text(encoding="utf-8"))
                names = ast.walk(ast.parse(text)) if path.suffix == ".py" else ()
                if any(isinstance(node, ast.Name) and node.id == NAME for node in names):
                    raise ValueError(
                        f"{path}: a variable bears the name of a folder, and the wheel would rename it"
                    )
                path.write_text(text, encoding="utf-8")


setup(
    packages=[BEFORE + name for name in find_packages(include=[p for f in FOLDERS for p in (f, f"{f}.*")])],
    package_dir={} if IN_PLACE else {BEFORE + name: name for name in FOLDERS},
    package_data={BEFORE + name: patterns for name, patterns in DATA.items()},
    cmdclass={"build_py": BuildInOne},
)
