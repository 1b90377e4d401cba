"""The rules that a linter does not know: sizes, words for every name, no stray paths."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("client", "common", "deploy", "privacy", "server")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 5

# Where a foreign library may be imported: anywhere else it is out of place.
DOORS = {
    "flwr": {"app", "grid", "link", "loop", "strategy", "simulate", "wire"},
    "presidio_analyzer": {"detect"},
    "presidio_anonymizer": {"detect", "scrub"},
    "spacy": {"detect"},
    "opacus": {"dpsgd", "clipper"},
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*rooms: str) -> list[Path]:
    found = (path for room in rooms for path in (ROOT / room).rglob("*.py"))
    # What protoc makes is as protoc makes it.
    return sorted(path for path in found if "_pb2" not in path.name)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: Function) -> int:
    """Lines of a function without its docstring, which may be as long as it must."""
    assert function.end_lineno is not None
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        total -= first.end_lineno - first.lineno + 1
    return total


def public(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """The public functions and classes of a body, and the public methods of those classes."""
    for node in body:
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_definition and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def is_click_command(function: Function) -> bool:
    return any("click." in text or ".command(" in text for text in decorators(function))


def decorators(function: Function) -> list[str]:
    return [ast.unparse(decorator) for decorator in function.decorator_list]


@pytest.mark.parametrize("path", sources(*ROOMS), ids=name_of)
def test_a_file_is_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", sources(*ROOMS), ids=name_of)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    too_long = [f"{f.name}: {length(f)}" for f in functions(path) if length(f) > MAX_FUNCTION_LINES]

    assert too_long == []


@pytest.mark.parametrize("path", sources(*ROOMS), ids=name_of)
def test_a_function_has_at_most_five_parameters(path: Path) -> None:
    wrong = []
    for function in functions(path):
        if is_click_command(function):  # one parameter for each option
            continue
        arguments = function.args
        by_position = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
        by_position = [name for name in by_position if name not in {"self", "cls"}]
        if len(by_position) + len(arguments.kwonlyargs) > MAX_PARAMETERS:
            wrong.append(function.name)

    assert wrong == []


@pytest.mark.parametrize("path", sources(*ROOMS), ids=name_of)
def test_every_public_name_says_what_it_is(path: Path) -> None:
    module = parsed(path)

    silent = [node.name for node in public(module.body) if not ast.get_docstring(node)]

    assert ast.get_docstring(module), "the module has no docstring"
    assert [name for name in silent if name not in {"__init__", "__len__"}] == []


@pytest.mark.parametrize("path", sources(*ROOMS), ids=name_of)
def test_no_type_is_any(path: Path) -> None:
    used = [
        f"line {node.lineno}"
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Name) and node.id == "Any")
        or (isinstance(node, ast.Attribute) and node.attr == "Any")
    ]

    assert used == []


@pytest.mark.parametrize("path", sources(*ROOMS), ids=name_of)
def test_imports_are_absolute_and_foreign_libraries_stand_at_their_doors(path: Path) -> None:
    misplaced = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules = [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for library in {module.partition(".")[0] for module in modules} & DOORS.keys():
            if not any(path.stem.startswith(door) for door in DOORS[library]):
                misplaced.append(f"{library} in line {node.lineno}")

    assert misplaced == []


@pytest.mark.parametrize("path", sources(*ROOMS), ids=name_of)
def test_nothing_is_left_undone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", text) == []


def carried() -> list[Path]:
    """Every text file of the repository, as far as a copy without git can tell."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    if listed.returncode != 0:
        paths = [*ROOT.glob("*"), *(p for room in ROOMS for p in (ROOT / room).rglob("*"))]
    endings = {".py", ".md", ".toml", ".yaml", ".json", ".txt", ".j2", ""}
    return [path for path in paths if path.is_file() and path.suffix in endings]


def test_no_file_names_a_place_of_one_machine() -> None:
    # Put together here, so that this file does not name one itself.
    homes = re.compile("|".join(["/" + "work/", "/" + r"home/(?!someone)\w", "/" + r"Users/\w"]))
    registries = re.compile(
        "|".join(["py" + r"pi\.org", "download" + r"\.pytorch", "index" + "-url ht"])
    )

    named = [
        name_of(path)
        for path in carried()
        if (text := path.read_text(encoding="utf-8", errors="replace"))
        and (homes.search(text) or registries.search(text))
    ]

    assert named == []
