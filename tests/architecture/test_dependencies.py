"""Every library that is imported is declared, and every one that is declared is used."""

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
USED_WITHOUT_AN_IMPORT = {
    "psycopg": "SQLAlchemy loads it for PostgreSQL",
    "python-multipart": "FastAPI loads it for forms",
    "sentencepiece": "transformers loads it for tokenizers",
    "protobuf": "transformers loads it for tokenizers",
    "gguf": "transformers loads it for GGUF files",
}

BROUGHT_ALONG = {
    "triton": "torch brings it where it is built for CUDA; nothing is imported from it elsewhere",
}


def test_every_library_that_is_imported_is_declared():
    provided_by = importlib.metadata.packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path, module in imports()
        if module not in BROUGHT_ALONG
        if not {canonicalize_name(name) for name in provided_by.get(module, [])} & declared()
    }

    assert sorted(undeclared) == []


def test_every_declared_library_is_used():
    provided_by = importlib.metadata.packages_distributions()
    used = {canonicalize_name(name) for _, module in imports() for name in provided_by.get(module, [])}

    assert sorted(declared() - used - USED_WITHOUT_AN_IMPORT.keys()) == []


def test_every_declared_library_has_its_reason_beside_it():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    begin = lines.index("dependencies = [")
    block = lines[begin + 1 : lines.index("]", begin)]

    assert [line for line in block if "#" not in line] == []


def declared() -> set[str]:
    """Canonical names of the run-time dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}


def imports() -> set[tuple[Path, str]]:
    """Every third-party module that a module of ours imports at any place, at its top level."""
    found = set()
    for package in ("app", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                found |= {(path, name.split(".")[0]) for name in names}
    return {(path, name) for path, name in found if name not in {*sys.stdlib_module_names, "app", "trainer"}}
