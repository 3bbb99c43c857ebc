"""The architecture: who may import whom, and what no module may do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED: dict[str, set[str]] = {
    "shards": set(),
    "slurm": {"shards.errors", "shards.files", "shards.cores"},
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
QUESTIONS = {"What", "How", "Where", "Which", "Whether", "When", "Who", "Why"}


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


@pytest.fixture(scope="module", name="trees")
def _trees() -> dict[str, ast.Module]:
    return {module: ast.parse((ROOT / module).read_text()) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str, trees: dict[str, ast.Module]) -> None:
    package = module.split("/")[0]
    for name, plain in imports_of(trees[module]):
        top = name.split(".")[0]
        if top in ALLOWED and top != package:
            assert {top, name} & ALLOWED[package], f"{module} imports {name}"
        assert not (plain and top == "eval"), f"{module}: `import {name}` hides the built-in eval"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_one_noun_and_a_readable_size(module: str, trees: dict[str, ast.Module]) -> None:
    path, tree = ROOT / module, trees[module]
    assert path.stem not in FORBIDDEN_NAMES
    assert len(path.read_text().splitlines()) <= 300
    first_word = (ast.get_docstring(tree) or "").partition(" ")[0]
    assert first_word not in QUESTIONS, f"{module}: a module's first line says what it holds"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 40, f"{module}:{node.lineno} {node.name}"


def test_no_class_name_is_used_twice(trees: dict[str, ast.Module]) -> None:
    nodes = (node for tree in trees.values() for node in ast.walk(tree))
    classes = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    assert sorted(classes) == sorted(set(classes))


def test_a_fragment_has_several_importers(trees: dict[str, ast.Module]) -> None:
    importers: dict[str, set[str]] = {module: set() for module in MODULES}
    others = {f"benchmarks/{p.name}": ast.parse(p.read_text()) for p in (ROOT / "benchmarks").glob("*.py")}
    for module, tree in (trees | others).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for name in (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)):
                    importers.get(name.replace(".", "/") + ".py", set()).add(module)
    texts = {m: (ROOT / m).read_text() for m, by in importers.items() if len(by) == 1}
    short = [m for m, t in texts.items() if len(t.splitlines()) < 80 and "run_program(main)" not in t]
    assert not short, "a module of under 80 lines with one importer belongs into it"


@pytest.mark.parametrize("module", MODULES)
def test_weights_are_never_unpickled_with_code(module: str, trees: dict[str, ast.Module]) -> None:
    for node in ast.walk(trees[module]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), (
                module
            )


def test_init_files_are_empty() -> None:
    assert not [m for m in MODULES if m.endswith("__init__.py") and (ROOT / m).read_text().strip()]
