"""Every file of the project keeps the sizes and names that the project holds itself to."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVASIVE_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "base",
    "core",
    "manager",
    "service",
    "services",
    "misc",
}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
LARGEST_FILE = 2**20


def tracked() -> list[Path]:
    """Files of the repository; where git or its folder is missing, the files that it would hold."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_no_python_file_is_longer_than_400_lines():
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files("app", "trainer", "tests", "docs")
    }

    too_long = [f"{path.relative_to(ROOT)}: {lines}" for path, lines in lengths.items() if lines > LONGEST_FILE]

    assert too_long == []


def test_no_function_is_longer_than_60_lines():
    too_long = [
        f"{path.relative_to(ROOT)}: {function.name} has {length} lines"
        for path in python_files("app", "trainer", "docs")
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION
    ]

    assert too_long == []


def test_every_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files("app", "trainer", "tests", "docs")
        if path.name not in ("__init__.py", "__main__.py") or path.parent.parent == ROOT
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert silent == []


def test_no_module_has_a_name_that_could_hold_anything():
    evasive = [
        str(path.relative_to(ROOT))
        for path in python_files("app", "trainer", "tests")
        if {path.stem.removeprefix("_").removeprefix("test_"), path.parent.name} & EVASIVE_NAMES
    ]

    assert evasive == []


def test_no_tracked_file_is_larger_than_one_mebibyte():
    large = [
        f"{path.relative_to(ROOT)}: {path.stat().st_size}" for path in tracked() if path.stat().st_size > LARGEST_FILE
    ]

    assert large == []


def test_no_tracked_file_names_the_host_of_a_package_registry():
    # Put together from pieces, or this file would name them.
    hosts = [
        ".".join(parts)
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("registry", "npmjs"),
            ("npmjs", "org"),
            ("download", "pytorch"),
        )
    ]
    pattern = re.compile("|".join(map(re.escape, hosts)))

    naming = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if pattern.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]

    assert naming == []


def test_nothing_fetched_is_tracked():
    fetched = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if {"node_modules", "vendor", ".venv", "data"} & set(path.relative_to(ROOT).parts[:-1])
    ]

    assert fetched == []


@pytest.mark.parametrize("half", ["app", "trainer"])
def test_no_class_name_is_defined_twice_in_one_half(half: str):
    defined: dict[str, list[str]] = {}
    for path in python_files(half):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(str(path.relative_to(ROOT)))

    assert {name: paths for name, paths in defined.items() if len(paths) > 1} == {}


def test_few_modules_stand_outside_a_package_in_the_trainer():
    outside = {path.name for path in (ROOT / "trainer").glob("*.py")}

    assert outside == {"__init__.py", "harvest.py", "device.py", "errors.py"}
