"""The architecture: who may import whom, and what no module may do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED: dict[str, set[str]] = {
    "shards": set(),
    "slurm": {"shards.errors", "shards.files"},
    "outlier_paste": {"shards"},
    "eval": {"shards"},
    "models": {"shards", "eval"},
    "trainer": {"shards", "eval", "models", "outlier_paste"},
    "jobs": {"shards", "eval", "models", "trainer", "outlier_paste", "slurm"},
}
MODULES = sorted(
    path.relative_to(ROOT).as_posix() for package in ALLOWED for path in (ROOT / package).rglob("*.py")
)
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}


def imports_of(tree: ast.AST) -> list[tuple[str, bool]]:
    """List imported modules, and whether by a plain `import x.y`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, True) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append((node.module or "", False))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    package = module.split("/")[0]
    for name, plain in imports_of(ast.parse((ROOT / module).read_text())):
        top = name.split(".")[0]
        if top in ALLOWED and top != package:
            assert {top, name} & ALLOWED[package], f"{module} imports {name}"
        assert not (plain and top == "eval"), f"{module}: `import {name}` hides the built-in eval"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_one_noun_and_a_readable_size(module: str) -> None:
    path = ROOT / module
    assert path.stem not in FORBIDDEN_NAMES
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", MODULES)
def test_weights_are_never_unpickled_with_code(module: str) -> None:
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), (
                module
            )


def test_init_files_are_empty_but_for_the_registry_of_losses() -> None:
    full = [m for m in MODULES if m.endswith("__init__.py") and (ROOT / m).read_text().strip()]
    assert full == ["trainer/losses/__init__.py"]
