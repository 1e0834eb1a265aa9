"""The layer rule: a module imports its own level or lower, and heavy libraries come late."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import capfilt

ROOT = Path(capfilt.__file__).parent
LAYERS = (
    "errors schema stage fingerprint publish images texts",
    "ledger source inputs checkpoints models",
    "stages",
    "plan executors worker engine round configs options retry status verify garbage cost finish "
    "export report evaluate train",
    "commands commands_train commands_rounds rounds console cli_train cli_rounds cli __main__",
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
# They stand beside the layers: they import what they like, and nothing below L4 imports them.
BESIDE = {"demo", "bench"}
HEAVY = {"torch", "transformers", "img2dataset", "faiss", "pandas", "datasets"}
# The files that exist for a heavy library, each a module that is imported only where it is used.
MADE_FOR_HEAVY = (
    "capfilt.models.",
    "tests.benchmarks.",
    "pipelines.experiments.train",
    *(
        f"capfilt.train.{name}"
        for name in (
            *("gather", "jobs", "loop", "losses", "med", "momentum", "objective", "run"),
            *("tokens", "towers"),
        )
    ),
)
MODULES = {
    ".".join(("capfilt", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}


def top(module: str) -> str:
    """Return what of capfilt a module belongs to: `capfilt.stages.match` to `stages`."""
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


def test_every_module_has_a_level() -> None:
    tops = {top(module) for module in MODULES if module != "capfilt"}
    assert tops - BESIDE <= set(LEVELS), "give the new module a level in LAYERS"
    assert "plan" in tops  # the folder that was read is capfilt's
    assert imports("capfilt") == set()  # or everything would import what it imports


@pytest.mark.parametrize("module", [m for m in MODULES if m != "capfilt" and top(m) in LEVELS])
def test_a_module_imports_its_own_level_or_lower(module: str) -> None:
    own = LEVELS[top(module)]
    for name in ours(imports(module)):
        assert name in MODULES, f"{module} imports {name}, which is not there"
        beside = top(name) in BESIDE
        assert not beside or own == max(LEVELS.values()), f"{module} imports {name}"
        assert beside or LEVELS[top(name)] <= own, f"{module} (L{own}) imports {name}, above it"


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
    light = [m for m in MODULES if m.partition(".")[2] and top(m) in LEVELS]
    named = [m for m in light if top(m) != "__main__" and not m.startswith(MADE_FOR_HEAVY)]
    named = [m for m in named if top(m) != "models"]
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
