"""The arrangement of the house: which room may import which, and names that would break others."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("latentpt", "kernels", "data_prep", "launch", "tests")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

LIBRARY = "latentpt"

# room -> the rooms that it may import. Imports run one way:
# kernels <- modeling <- thoughts <- run <- generation <- evaluation <- hub <- report <- training <- {finetuning, compare, benchmark} <- launch.
GROUND = {"config", "cpu", "files", "intervals", "pages", "seeding"}
CORE = {*GROUND, "modeling", "thoughts"}
ROOMS_BELOW = {
    "__init__": {"cpu"},
    "config": set(),
    "cpu": {"files"},
    "files": set(),
    "intervals": set(),
    "pages": set(),
    "seeding": set(),
    "modeling": GROUND,
    "thoughts": {*GROUND, "modeling"},
    "data": GROUND,
    "run": {*CORE, "data"},
    "status": {*GROUND, "run"},
    "generation": {*CORE, "data"},
    "training": {*CORE, "data", "run", "report", "hub"},
    "evaluation": {*CORE, "data", "run", "generation"},
    "hub": {*CORE, "data", "run", "generation", "evaluation"},
    "report": {*CORE, "data", "run", "generation", "evaluation", "hub"},
    "finetuning": {*CORE, "data", "run", "training", "generation", "evaluation", "hub"},
    "benchmark": {*CORE, "data", "run", "training", "generation", "evaluation", "hub"},
    "compare": {*CORE, "data", "run", "training", "generation", "evaluation", "hub"},
}
# What lies outside the package -> what it may import of ours.
OUTSIDE_BELOW = {
    "kernels": ("latentpt_kernels",),
    "data_prep": ("data_prep", "latentpt.data"),
    "launch": (LIBRARY,),
}
OURS = (LIBRARY, "latentpt_kernels", "data_prep", "launch", "configs", "tests")

# Their quirks, and the seconds that their import takes, stay where they are needed.
DEEPSPEED_ROOM = "latentpt/training/engine/"
# Travels with exported models and is imported by whoever loads them, never here.
SHIPPED = tuple(f"latentpt/hub/modeling_{part}.py" for part in ("latentpt", "decoder", "thoughts", "latents"))
INSIDE_FUNCTIONS_ONLY = ("transformers", "lm_eval", "wandb", "flash_attn")

WITHOUT_INIT = ("kernels", "launch", "configs", "docs")
SHADOWING_NAMES = sys.stdlib_module_names | {
    "evaluate",
    "datasets",
    "triton",
    "torch",
    "kernels",
    "transformers",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.Module, top_level_only: bool = False) -> list[set[str]]:
    """Per imported name the dotted names it may mean; relative imports do not occur in this house."""
    found: list[set[str]] = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [{alias.name} for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [{node.module, f"{node.module}.{alias.name}"} for alias in node.names]
    return found


def imported_modules(tree: ast.Module, top_level_only: bool = False) -> set[str]:
    """Dotted names that a module imports."""
    return set().union(*imports(tree, top_level_only))


def within(modules: set[str], packages: tuple[str, ...]) -> list[str]:
    """The modules that are one of the packages or lie in it."""
    return sorted(m for m in modules for package in packages if m == package or m.startswith(package + "."))


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every Python file of the house, parsed, by its name."""
    return {name_of(path): ast.parse(path.read_text()) for path in SOURCES}


def room_of(name: str) -> str:
    """The room of the package's file: its folder, or the module itself where it lies beside the folders."""
    return name.split("/")[1].removesuffix(".py")


def may_import(name: str) -> tuple[str, ...]:
    """Packages and modules of ours that a file may import, inside functions too."""
    top = name.split("/")[0]
    if top != LIBRARY:
        return OUTSIDE_BELOW[top]
    rooms = {room_of(name), *ROOMS_BELOW[room_of(name)]}
    return ("latentpt_kernels", *(f"{LIBRARY}.{room}" for room in sorted(rooms)))


def test_every_room_has_its_place_and_no_place_is_below_itself(trees):
    assert {room_of(name) for name in trees if name.startswith("latentpt/")} <= set(ROOMS_BELOW)
    for room in ROOMS_BELOW:
        seen, waiting = set(), [room]
        while waiting:
            for below in ROOMS_BELOW[waiting.pop()]:
                assert below != room, f"{room} is below itself"
                if below not in seen:
                    seen.add(below)
                    waiting.append(below)


def test_imports_run_one_way(trees):
    wrong = []
    for name, tree in trees.items():
        if name.startswith("tests/"):
            continue
        for statement in imports(tree):
            ours = within(statement, OURS)
            if ours and not within(statement, may_import(name)):
                wrong.append(f"{name} imports {ours[0]}")
    assert not wrong


def test_an_import_inside_a_function_counts_and_what_a_package_hands_on_is_the_package():
    tree = ast.parse("def f():\n    from latentpt import run\n    from latentpt.run import RunConfig\n")
    assert imports(tree) == [{"latentpt", "latentpt.run"}, {"latentpt.run", "latentpt.run.RunConfig"}]


def test_nobody_but_the_executor_runs_the_blocks():
    ours = {path: path.read_text() for path in SOURCES if name_of(path).startswith("latentpt/")}
    callers = [
        name_of(path) for path, text in ours.items() if re.search(r"decoder\.run\(|\bblocks\[[^]]*\]\(", text)
    ]
    assert sorted(callers) == ["latentpt/modeling/decoder.py", "latentpt/thoughts/execute.py"]


def test_deepspeed_is_imported_where_its_quirks_live(trees):
    rooms = {name for name, tree in trees.items() if within(imported_modules(tree), ("deepspeed",))}
    outside = {name for name in rooms if not name.startswith(("tests/", DEEPSPEED_ROOM))}
    assert rooms and not outside


def test_heavy_packages_are_imported_inside_the_functions_that_need_them(trees):
    ours = {
        name: tree for name, tree in trees.items() if not name.startswith("tests/") and name not in SHIPPED
    }
    at_top = {name: imported_modules(tree, top_level_only=True) for name, tree in ours.items()}
    assert not {name for name, modules in at_top.items() if within(modules, INSIDE_FUNCTIONS_ONLY)}


def test_a_file_is_a_room_of_less_than_600_lines():
    assert not [name_of(path) for path in SOURCES if len(path.read_text().splitlines()) >= 600]


@pytest.mark.parametrize("folder", WITHOUT_INIT)
def test_folders_named_like_other_packages_are_no_packages(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_every_folder_of_tests_is_a_package():
    """Otherwise two test files of one name cannot be run in one session."""
    folders = {path.parent for path in SOURCES if name_of(path).startswith("tests/")}
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()]


@pytest.mark.parametrize("folder", ["launch", "data_prep"])
def test_no_script_shadows_a_module_that_others_import(folder):
    """A script's folder is sys.path[0]: a launch/profile.py would be found before the standard library's."""
    stems = {path.stem for path in (ROOT / folder).glob("*.py")}
    assert not stems & SHADOWING_NAMES, f"{sorted(stems & SHADOWING_NAMES)} in {folder}/ shadow other modules"


def test_the_library_is_imported_without_deepspeed_and_transformers():
    code = (
        "import sys, latentpt.modeling, latentpt.thoughts, latentpt.data, latentpt.compare; "
        "print([m for m in ('deepspeed', 'transformers', 'lm_eval') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_dependency_is_pinned():
    """`make install` must bring the versions that the tests ran with; torch and triton are pinned in the Makefile."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for name in extras if name != "flash" for line in extras[name]]
    wanted += [Requirement(line) for line in project["dependencies"]]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins[requirement.name.lower().replace("_", "-")] = str(requirement.specifier)
    makefile = (ROOT / "Makefile").read_text()
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        if name in ("torch", "triton"):
            assert f"{name.upper()} ?= {name}==" in makefile
        elif name != LIBRARY:
            pin = pins.get(name, "")
            assert pin.startswith("=="), f"{requirement.name} has no exact version in constraints.txt"
            assert requirement.specifier.contains(pin[2:])
