"""The floors: a room imports its own floor or lower, and heavy libraries come late."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import capfilt

ROOT = Path(capfilt.__file__).parent
# A line is a floor: a room imports from its own floor and from those above it in this list.
FLOORS = (
    "errors schema stage fingerprint plain option flags usercode wording progress process pixels "
    "store",
    "inputs",
    "ledger",
    "models",
    "stages",
    "export report",
    "recipe",
    "engine",
    "evaluate",
    "train",
    "commands",
    "rounds",
    "simweb",
    "cli",
    "__main__",
)
LEVELS = {name: level for level, names in enumerate(FLOORS) for name in names.split()}
HEAVY = {"torch", "transformers", "img2dataset", "faiss", "pandas", "datasets"}
# The files that exist for a heavy library, each a module that is imported only where it is used.
MADE_FOR_HEAVY = (
    *("capfilt.models.compute.", "capfilt.models.blip", "capfilt.models.clip"),
    "capfilt.models.instructblip",
    "capfilt.train.model.",
    *(f"capfilt.train.{name}" for name in ("jobs", "loop", "training", "data.tokens")),
)
MODULES = {
    ".".join(("capfilt", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}


def top(module: str) -> str:
    """Return the room of a module: `capfilt.stages.match` to `stages`."""
    return module.split(".")[1]


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that a statement imports; of capfilt's, down to the module itself."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *([base] if base else [])])
        submodules = [f"{base}.{alias.name}" for alias in node.names]
        found = [name for name in submodules if name in MODULES]
        yield from found
        if len(found) < len(submodules):
            yield base


def imports(module: str, everywhere: bool = True) -> set[str]:
    """Return what a module imports: everywhere in it, or only when it is imported itself."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imports_of(path.read_text(encoding="utf-8"), package, everywhere)


def imports_of(text: str, package: str, everywhere: bool = True) -> set[str]:
    tree = ast.parse(text)
    nodes = ast.walk(tree) if everywhere else at_import(tree)
    return {name for node in nodes for name in imported(node, package)}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: all but those in functions."""
    for child in ast.iter_child_nodes(node):
        lazy = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        if isinstance(child, lazy) or "TYPE_CHECKING" in ast.dump(getattr(child, "test", child)):
            continue
        yield child
        yield from at_import(child)


def ours(names: set[str]) -> set[str]:
    """Leave out other people's modules and `capfilt` itself, which holds the version alone."""
    return {name for name in names if name.startswith("capfilt.")}


def test_imports_are_found_wherever_and_however_they_are_written() -> None:
    text = """
import capfilt.errors
from capfilt import schema, __version__
from .stages import match
if TYPE_CHECKING:
    import torch
class A:
    import faiss
    def late(self):
        from capfilt.models.blip import BlipCaptioner
        import pandas as pd
"""
    early = {"capfilt.errors", "capfilt.schema", "capfilt", "capfilt.stages.match", "faiss"}
    late = {"torch", "capfilt.models.blip", "pandas"}
    assert imports_of(text, "capfilt") == early | late
    assert imports_of(text, "capfilt", everywhere=False) == early


def test_every_room_has_a_floor() -> None:
    tops = {top(module) for module in MODULES if module != "capfilt"}
    assert tops <= set(LEVELS), "give the new room a floor in FLOORS"
    assert "engine" in tops  # the folder that was read is capfilt's
    assert (
        ours(imports("capfilt", everywhere=False)) == set()
    )  # or everything would import what it imports


@pytest.mark.parametrize("module", [m for m in MODULES if m != "capfilt"])
def test_a_module_imports_its_own_floor_or_lower(module: str) -> None:
    own = LEVELS[top(module)]
    for name in ours(imports(module)):
        assert name in MODULES, f"{module} imports {name}, which is not there"
        assert LEVELS[top(name)] <= own, f"{module} imports {name}, which is above it"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: ours(imports(module, everywhere=False)) for module in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith(MADE_FOR_HEAVY)])
def test_heavy_libraries_are_imported_in_functions(module: str) -> None:
    loaded = {name.partition(".")[0] for name in imports(module, everywhere=False)}
    assert loaded & HEAVY == set()


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_planning_imports_no_model_library_by_a_detour_either() -> None:
    """What planning and status read is here: every module but those that hold the models."""
    light = [m for m in MODULES if m != "capfilt" and top(m) != "__main__"]
    named = [m for m in light if not m.startswith(MADE_FOR_HEAVY)]
    wanted = {"torch", "transformers", "img2dataset", "faiss", "datasets"}
    script = f"import sys, {', '.join(named)}; print(*sorted(set(sys.modules) & {wanted!r}))"
    assert python("-c", script).stdout.split() == []


def test_help_imports_nothing_that_takes_long() -> None:
    done = python("-X", "importtime", "-m", "capfilt", "--help")
    assert "Usage" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert {"typer", "capfilt"} <= loaded
    assert loaded & (HEAVY | {"pyarrow", "numpy"}) == set()
