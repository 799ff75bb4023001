"""The direction of imports, read from the source text, and what stays free of torch.

    tools -> cluster -> ablation -> run, bench, report -> train -> eval -> model, data -> encoders
          -> config, batch, comm, cli, slices, run_folder, status -> log, errors, files, disk,
          markdown

An import counts wherever it stands, also inside a function; only for circles does one inside a
function not count, since it is no part of loading the module.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEVELS = [
    {"errors", "log", "files", "disk", "markdown"},
    {"config", "batch", "comm", "cli", "slices", "run_folder", "status"},
    {"encoders"},
    {"model", "data"},
    {"eval"},
    {"train"},
    {"run", "bench", "report"},
    {"ablation"},
    {"cluster"},
    {"tools"},
]
NEVER_EACH_OTHER = [("model", "data"), ("batch", "config"), ("comm", "config")]

# Who may see config objects: the builders, and what reads or prints a command line.
BUILDERS = {
    "paltrain.cli",
    "paltrain.run",
    "paltrain.run_folder",
    "paltrain.bench.forms",
    "paltrain.data.loader",
}
BUILDER_FOLDERS = ("paltrain.config", "cluster", "tools")

TORCH_FREE = [
    "paltrain",
    "paltrain.ablation.build",
    "paltrain.ablation.report",
    "paltrain.cli",
    "paltrain.config",
    "paltrain.run",
    "paltrain.slices",
    "paltrain.status",
    "paltrain.data.manifest",
    "paltrain.data.merge",
    "paltrain.data.index",
    "paltrain.data.build",
    "paltrain.data.order",
    "paltrain.data.plan",
    "paltrain.data.lengths",
    "paltrain.data.shards",
    "paltrain.model.cost",
    "cluster",
    "tools.jobs",
    "tools.launch",
    "tools.plan_data",
]


@dataclass(frozen=True)
class Import:
    name: str  # the module, or the module and the name taken from it
    line: int
    is_at_top: bool  # runs while the module loads


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = [
        file
        for folder in ("paltrain", "cluster", "tools")
        for file in (ROOT / folder).rglob("*.py")
    ]
    return {dotted_name(file): file for file in sorted(files)}


def dotted_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(module: str) -> list[Import]:
    file = modules()[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return list(walk(tree, package, is_at_top=True))


def walk(node: ast.AST, package: str, *, is_at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, is_at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = absolute(child, package)
            yield from (
                Import(f"{base}.{alias.name}", child.lineno, is_at_top) for alias in child.names
            )
        elif is_type_checking(child):
            yield from walk(child, package, is_at_top=False)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, package, is_at_top=is_at_top and not inside)


def absolute(node: ast.ImportFrom, package: str) -> str:
    parents = package.split(".")
    base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
    return ".".join(part for part in (base, node.module) if part)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def target_of(name: str) -> str | None:
    """The project's module that importing `name` loads, None for another's."""
    known = modules()
    while name:
        if name in known:
            return name
        name = name.rpartition(".")[0]
    return None


def part_of(module: str) -> str | None:
    """The part of the diagram a module belongs to; None for the `paltrain` package itself."""
    parts = module.split(".")
    if parts[0] != "paltrain":
        return parts[0]
    return parts[1] if len(parts) > 1 else None


def level_of(part: str) -> int:
    for level, parts in enumerate(LEVELS):
        if part in parts:
            return level
    raise AssertionError(f"'{part}' has no place in the diagram: give it one in LEVELS")


def edges(*, at_top_only: bool = False) -> Iterator[tuple[str, str, int]]:
    """(importing module, imported module, line) inside the project."""
    for module in modules():
        for each in imports_of(module):
            target = target_of(each.name)
            if target and target != module and (each.is_at_top or not at_top_only):
                yield module, target, each.line


def where(module: str, line: int) -> str:
    return f"{modules()[module].relative_to(ROOT)}:{line}"


def test_every_module_has_a_place_in_the_diagram():
    parts = {part for module in modules() if (part := part_of(module))}
    assert parts == {part for level in LEVELS for part in level}


def test_imports_run_downward():
    upward = []
    for module, target, line in edges():
        here, there = part_of(module), part_of(target)
        if here and there and here != there and level_of(there) > level_of(here):
            upward.append(f"{where(module, line)} imports {target}")
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("pair", NEVER_EACH_OTHER, ids=" and ".join)
def test_parts_that_never_import_each_other(pair):
    found = [
        f"{where(module, line)} imports {target}"
        for module, target, line in edges()
        if {part_of(module), part_of(target)} == set(pair)
    ]
    assert not found, "\n".join(found)


def test_the_library_imports_neither_cluster_nor_tools():
    found = [
        f"{where(module, line)} imports {target}"
        for module, target, line in edges()
        if module.startswith("paltrain") and not target.startswith("paltrain")
    ]
    assert not found, "\n".join(found)


def test_no_module_reaches_itself_while_loading():
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for module, target, _ in edges(at_top_only=True):
        if not module.startswith(f"{target}."):  # a package is always loaded before its modules
            graph[module].add(target)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_two_parts_import_each_other():
    pairs = {(part_of(module), part_of(target)) for module, target, _ in edges()}
    both = {frozenset(pair) for pair in pairs if pair[0] != pair[1] and pair[::-1] in pairs}
    assert not [pair for pair in both if None not in pair]


def test_one_file_imports_deepspeed():
    found = [
        module
        for module in modules()
        if any(each.name.split(".")[0] == "deepspeed" for each in imports_of(module))
    ]
    assert found in ([], ["paltrain.train.deepspeed_engine"])


def test_only_builders_see_config_objects():
    found = []
    for module, target, line in edges():
        is_builder = (
            module in BUILDERS
            or module.startswith(BUILDER_FOLDERS)
            or module.rpartition(".")[2] == "build"
            or "engine" in module.rpartition(".")[2]
        )
        if target.startswith("paltrain.config") and not is_builder:
            found.append(f"{where(module, line)} imports {target}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_login_node_imports_it_without_torch(module):
    heavy = ("torch", "deepspeed", "transformers", "matplotlib", "wandb")
    program = (
        f"import sys, importlib; importlib.import_module('{module}')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
