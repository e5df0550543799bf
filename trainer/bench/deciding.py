"""Deciding modules: the code that an outcome hangs on, so that work on anything else does not throw it away."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "trainer"


def fingerprint(*modules: str) -> str:
    """Changes with the source of these modules of ours, or of any they import, directly or not."""
    digest = hashlib.sha256()
    for name in sorted(reached(*modules)):
        digest.update(_file(name).read_bytes())
    return digest.hexdigest()


def reached(*modules: str) -> set[str]:
    """These modules and all of ours that they import, directly or not, wherever in a module the import stands."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imported(_file(name))
    return found


def _imported(file: Path) -> Iterator[str]:
    """Modules of ours that a file imports; of `from package import name`, the module where there is one."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in inner if _file(name).is_file()] + [node.module]


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _file(module: str) -> Path:
    place = ROOT.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
