"""Who may import whom: the directions of the design, no cycles, and nothing heavy before it is needed.

pytest tests/test_imports.py
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dseq_jepa"
MODULES = {
    ".".join(["dseq_jepa", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
HEAVY = {"torch", "torchvision", "timm", "mlflow", "pandas", "skimage", "matplotlib", "scipy"}
COMPUTE = {"torch", "timm", "numpy", "scipy", "pydantic", "safetensors"}
LIGHT = ["cli", "config", "jobs", "errors", "closed", "files", "journal", "provenance", "selection", "models.weights"]


def imports(module: str, *, deferred: bool = True) -> Iterator[str]:
    """What a module imports, also inside functions unless `deferred` is False; never what only type checkers read."""
    tree = ast.parse(MODULES[module].read_text())
    for node in _walk(tree, deferred):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                yield member if member in MODULES else str(node.module)


def _walk(node: ast.AST, deferred: bool) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not deferred:
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, deferred)


def inside(module: str, *packages: str) -> bool:
    return any(f"{module}.".startswith(f"dseq_jepa.{package}.") for package in packages)


@pytest.mark.parametrize("module", MODULES)
def test_directions(module: str):
    for imported in imports(module):
        if module != "dseq_jepa.__main__" and not inside(module, "cli"):
            assert not inside(imported, "cli"), f"{module} imports cli"
        if inside(module, "methods", "models"):
            assert not inside(imported, "training"), f"{module} imports {imported}"
        if inside(module, "models"):
            assert not inside(imported, "methods"), f"{module} imports {imported}"
        if inside(module, "evaluation"):
            assert not inside(imported, "methods"), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if inside(m, "models", "methods", "training")])
def test_a_bare_gpu_machine_can_run_what_trains(module: str):
    outside = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"dseq_jepa"}
    selectable = {"dseq_jepa.methods.regions": {"skimage"}, "dseq_jepa.training.machine": {"pynvml"}}
    allowed = COMPUTE | selectable.get(module, set())  # what only a setting asks for, and what may be missing
    assert outside <= allowed, f"{module} imports {outside - allowed}"


def test_no_cycles():
    graph = {module: {name for name in imports(module, deferred=False) if name in MODULES} for module in MODULES}
    for module, imported in graph.items():
        imported.discard(module)
        # importing a package's member runs the package first; packages here are empty, but for cli
        graph[module] = {name for name in imported if name != module.rsplit(".", 1)[0]}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module: str):
    code = f"import sys, dseq_jepa.{module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded, f"dseq_jepa.{module} imports {loaded}"
