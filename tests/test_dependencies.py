"""What pyproject.toml promises to install is what the package imports: nothing missing, nothing for nothing."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTED_AS = {"ruamel.yaml": "ruamel", "jinja2": "jinja2", "pillow": "PIL", "scikit-learn": "sklearn"}
INDIRECT = {"tokenizers": "transformers", "onnxscript": "torch"}  # imported by another package, on our behalf
BROUGHT = {"pydantic_core": "pydantic", "threadpoolctl": "sklearn"}  # parts that a declared package always installs


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def module_of(requirement: str) -> str:
    name = re.split(r"[<>=!~;\[ ]", requirement)[0].lower()
    return IMPORTED_AS.get(name, name)


def imported() -> set[str]:
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"stillroom"}


def declared(*extras: str) -> set[str]:
    wanted = list(project()["dependencies"])
    for extra in extras:
        wanted += project()["optional-dependencies"][extra]
    return {module_of(one) for one in wanted}


def test_every_import_is_declared():
    known = declared("text", "export")
    assert {one for one in imported() - known if BROUGHT.get(one) not in known} == set()


def test_every_core_dependency_is_imported():
    assert declared() - imported() == set()


@pytest.mark.parametrize("extra", ["text", "export"])
def test_every_dependency_of_an_extra_is_imported(extra):
    modules = {module_of(one) for one in project()["optional-dependencies"][extra]}
    assert {one for one in modules - imported() if INDIRECT.get(one) not in imported()} == set()


def test_torch_has_no_upper_bound():
    bound = next(one for one in project()["dependencies"] if one.startswith("torch"))
    assert "<" not in bound
