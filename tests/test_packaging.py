"""What is installed is what lies in the tree, and the rooms keep to their order."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("client", "common", "deploy", "privacy", "server")
SHIPPED = (".py", ".yaml", ".json", ".j2", ".jsonl.gz", ".md", "py.typed")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )


def tree() -> Iterator[str]:
    """What of the rooms belongs into the wheel: what git carries, or all of it without git."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS)
    if listed.returncode == 0:
        names = listed.stdout.splitlines()
    else:
        names = [str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*")]
    for name in names:
        if name.endswith(SHIPPED) and (ROOT / name).is_file():
            yield name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    for name in [*tree(), "pyproject.toml", "README.md", "LICENSE"]:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    built = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", base, cwd=source
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (path,) = base.glob("*.whl")
    return path


def test_the_wheel_holds_the_rooms_of_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    inside = {name.removeprefix("discreet/") for name in names if name.startswith("discreet/")}
    assert inside == set(tree())
    beside = {name.partition("/")[0] for name in names if not name.startswith("discreet/")}
    assert len(beside) == 1
    assert beside.pop().endswith(".dist-info")


def test_the_files_of_the_wheel_are_those_of_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        different = [n for n in tree() if archive.read(f"discreet/{n}") != (ROOT / n).read_bytes()]

    assert different == []


def test_the_wheel_runs_by_itself(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "import discreet.common.config as config, discreet.deploy.runs as runs\n"
        "assert config.__file__.startswith(sys.argv[1]), config.__file__\n"
        "print(config.load_plan(runs.embedded_plan()).name)\n"
    )

    # -S: without the site's hooks the editable installation cannot answer in the wheel's place.
    paths = [p for p in sys.path if p.endswith("site-packages")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(paths), "PATH": ""},
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_room_is_a_typed_and_flat_package() -> None:
    for room in ROOMS:
        assert (ROOT / room / "py.typed").is_file()
        assert (ROOT / room / "__init__.py").is_file()  # import-linter finds no room without
        assert list((ROOT / room).glob("*/**/*.py")) == []


@pytest.mark.parametrize("room", ROOMS)
def test_checkers_can_follow_the_mapping(room: str) -> None:
    link = ROOT / ".typings" / "discreet" / room

    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room
    assert link.resolve() == ROOT / room


def test_rooms_import_in_one_direction_alone() -> None:
    command = Path(sys.executable).parent / "lint-imports"

    checked = run(command, "--no-cache")

    assert checked.returncode == 0, checked.stdout[-3000:]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    pinned = {line.partition("==")[0] for line in pins.splitlines() if "==" in line}

    names = {_name(requirement) for requirement in wanted}

    assert names - pinned == set()


def test_every_pin_is_one_version_that_any_index_may_offer() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    pins = [line for line in lines if line and not line.startswith("#")]

    assert "torch==2.13.0" in pins
    assert [pin for pin in pins if pin.count("==") != 1 or "+" in pin or "@" in pin] == []


def _name(requirement: str) -> str:
    for sign in "<>=~![;":
        requirement = requirement.partition(sign)[0]
    return requirement.strip().lower().replace("_", "-")
