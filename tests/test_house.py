"""The house keeps its three rules: torch in one wing, no branch on a family, no import upwards and no circle."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import layerdiffuse_mcp
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS

PACKAGE = Path(layerdiffuse_mcp.__file__).parent
NAME = PACKAGE.name
HEAVY = {"torch", "diffusers", "transformers", "torchsde", "safetensors.torch"}

FLOORS = (
    {"errors", "imports", "installed", "wording", "settings", "surroundings", "logs", "families", "text", "__init__"},
    {"api"},
    {"images", "hub"},
    {"outputs", "recipes"},
    {"engine"},
    {"backends"},
    {"jobs"},
    {"server"},
    {"cli", "__main__"},
)
"""The rooms of the package, from the ground up: each may import from its own floor and from those below."""

ENGINE_FLOORS = (
    {"types", "__init__"},
    {"weights", "sampling", "text", "device"},
    {"models"},
    {"layers", "transparency"},
    {"pipeline"},
    {"drawing"},
    {"model_manager", "engine", "startup"},
)
"""The rooms of the engine, likewise."""

NAMED = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, (*FAMILIES, *METHODS)))})(?![\w.-])")
"""A family or a method in a text, and not as a part of a file's name."""

CARDS_AND_MODELS = ("families", "engine/models")
"""Where a family may be named."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = [NAME, *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


@cache
def own_imports(path: Path) -> tuple[str, ...]:
    return tuple(name for name in imports(path) if name == NAME or name.startswith(NAME + "."))


def room(module: str, below: str = NAME) -> str:
    """The part of a module's name after `below`: the room that it is in."""
    return module.removeprefix(below).lstrip(".").partition(".")[0] or "__init__"


def floor(name: str, floors: tuple[set[str], ...]) -> int:
    numbers = [number for number, rooms in enumerate(floors) if name in rooms]
    assert len(numbers) == 1, f"{name} is on no floor: give it one"
    return numbers[0]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_from_a_floor_above(module: str):
    here = room(module)
    for other in own_imports(MODULES[module]):
        assert floor(room(other), FLOORS) <= floor(here, FLOORS), f"{module} imports {other}, which lies above it"
        engine = f"{NAME}.engine"
        if here == "engine" and room(other) == "engine":
            above = floor(room(other, engine), ENGINE_FLOORS) > floor(room(module, engine), ENGINE_FLOORS)
            assert not above, f"{module} imports {other}, which lies above it in the engine"


def test_no_circle_of_imports():
    graph = {module: {other for other in own_imports(path) if other != module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) != "engine"])
def test_torch_lives_in_the_engine_alone(module: str):
    heavy = {name for name in imports(MODULES[module]) if name in HEAVY or name.partition(".")[0] in HEAVY}
    assert not heavy, f"{module} imports {', '.join(heavy)}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES.values() if not path.relative_to(PACKAGE).as_posix().startswith(CARDS_AND_MODELS)]
)
def test_no_code_branches_on_a_family(path: Path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (named := NAMED.search(node.value)):
            pytest.fail(f"{path.relative_to(PACKAGE)}:{node.lineno} names {named[0]!r}: ask the card")
        if isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            known = [side for side in sides if side.endswith((".family", ".spec.id")) or side == "family"]
            literal = any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in node.comparators)
            assert not (known and literal), f"{path.relative_to(PACKAGE)}:{node.lineno} compares a family"


LOOKS = {"exists": "exists", "is_dir": "isdir", "is_file": "isfile"}
"""Methods of paths, and what does the same without raising where a folder cannot be entered or a name is too long."""


@pytest.mark.parametrize("module", MODULES)
def test_no_look_at_a_path_raises(module: str):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
            assert node.func.attr not in LOOKS, (
                f"{module}:{node.lineno}: {node.func.attr}() raises for what cannot be reached before Python 3.14; "
                f"os.path.{LOOKS[node.func.attr]} does not"
            )


def test_only_the_command_line_prints():
    for module, path in MODULES.items():
        if room(module) != "cli":
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], module
