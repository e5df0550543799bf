"""Writes what the documents take from the code: the tree in README.md, and docs/commands, evidence, modules, results.

`make docs` runs it; a test compares the files with what it would write.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import duckdb

ROOT = Path(__file__).parents[1]
PACKAGES = ("trainer", "app")
HELP_WIDTH = 100
NOTICE = "*Written by `make docs`; change the code, not this file.*"
RESULTS_INTRODUCTION = (
    "A run publishes one DuckDB file, `results-<hash of its content>.duckdb`, and points to it from `current.json`. "
    "A published file never changes. The comments below are in the file too: `select * from duckdb_columns()`."
)
EVIDENCE_IN_A_RUN = (
    "In the explorer, *How claims are judged* on the page of any claimed feature shows the same with the thresholds of "
    "the run and what each test said of its claims. Why it is so: decisions "
    "[20](decisions/0020-probes-excess-and-nulls.md), [31](decisions/0031-excess-of-energy.md) and "
    "[32](decisions/0032-other-layers.md)."
)
TESTS_HEAD = "| test | what it asks | passes if | under `analysis.verdict` |\n|---|---|---|---|"
TABLE_HEAD = "| column | type | meaning |\n|---|---|---|"


def generated() -> dict[Path, str]:
    """Full text of every file that holds generated text."""
    readme = ROOT / "README.md"
    return {
        readme: between_marks(readme.read_text(encoding="utf-8"), "tree", code_block(tree(modules=False))),
        ROOT / "docs" / "commands.md": commands(),
        ROOT / "docs" / "evidence.md": evidence(),
        ROOT / "docs" / "modules.md": "\n\n".join(["# Every module", NOTICE, code_block(tree())]) + "\n",
        ROOT / "docs" / "results.md": results(),
    }


def tree(*, modules: bool = True) -> str:
    """Every module, or every top-level package, with the first line of its docstring, in the order of the layers."""
    lines = [line for package in PACKAGES for line in [*branch(ROOT / package, depth=0, modules=modules), ("", "")]]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{what}".rstrip() for name, what in lines).strip()


def branch(folder: Path, *, depth: int, modules: bool) -> list[tuple[str, str]]:
    """Name and first docstring line of a package and of what is in it: everything, or the outermost level alone."""
    indent = "  " * depth
    lines = [(f"{indent}{folder.name}/", first_line(folder / "__init__.py"))]
    if depth and not modules:
        return lines
    for path in sorted(members(folder), key=reading_order(folder.name)):
        if path.is_dir():
            lines += branch(path, depth=depth + 1, modules=modules)
        else:
            lines.append((f"{indent}  {path.name}", first_line(path)))
    return lines


def members(folder: Path) -> list[Path]:
    """Modules and packages directly inside a package."""
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    return modules + [path.parent for path in folder.glob("*/__init__.py")]


def reading_order(package: str) -> Callable[[Path], tuple[int, str]]:
    """Sort key: the layer of the import contract, then the name; packages without layers go by name."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next((contract["layers"] for contract in contracts if contract.get("containers") == [package]), [])
    place = {name: number for number, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    return lambda path: (place.get(path.stem, len(place)), path.stem)


def first_line(module: Path) -> str:
    """First line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def commands() -> str:
    """docs/commands.md: the help text of every command."""
    from app.cli import main

    parts = ["# Commands", NOTICE, code_block(help_of([]))]
    for name, command in main.commands.items():
        parts += [f"## crossdiff {name}", code_block(help_of([name]))]
        inner = command.commands if isinstance(command, click.Group) else {}
        parts += [
            part for each in inner for part in (f"### crossdiff {name} {each}", code_block(help_of([name, each])))
        ]
    return "\n\n".join(parts) + "\n"


def help_of(command: list[str]) -> str:
    """What `crossdiff … --help` prints."""
    from click.testing import CliRunner

    from app.cli import main

    outcome = CliRunner().invoke(main, [*command, "--help"], prog_name="crossdiff", terminal_width=HELP_WIDTH)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output.strip()


def results() -> str:
    """docs/results.md: every table and column of a results file, from the comments in trainer/results/schema.sql."""
    with duckdb.connect() as database:
        database.execute((ROOT / "trainer" / "results" / "schema.sql").read_text(encoding="utf-8"))
        tables = database.execute("select table_name, comment from duckdb_tables() order by table_oid").fetchall()
        parts = ["# The results file", NOTICE, RESULTS_INTRODUCTION]
        for table, comment in tables:
            columns = database.execute(
                "select column_name, data_type, is_nullable, comment from duckdb_columns() "
                "where table_name = $table order by column_index",
                {"table": table},
            ).fetchall()
            parts += [f"## {table}", comment, "\n".join([TABLE_HEAD, *(table_row(*column) for column in columns)])]
    return "\n\n".join(parts) + "\n"


def evidence() -> str:
    """docs/evidence.md: how claims are judged, from the words that the explorer shows and the recipe's defaults."""
    from app.results.evidence import criteria
    from trainer.recipe.measuring import VerdictRecipe

    recipe = {"analysis": {"verdict": VerdictRecipe().model_dump()}}
    usual, refuting = criteria.thresholds(recipe), criteria.refuting_thresholds(recipe)
    lines = [TESTS_HEAD]
    for test, asked in criteria.CRITERIA.items():
        limit = asked.passes(f"{usual[test]:g}")
        if test in refuting:
            limit += f"; {asked.refutes(f'{refuting[test]:g}')}"
        lines.append(f"| {asked.name} (`{test}`) | {asked.asks} | {limit} | `{asked.setting}` |")
    parts = ["# How claims are judged", NOTICE, criteria.INTRODUCTION, EVIDENCE_IN_A_RUN]
    for title, words in (("Verdicts", criteria.VERDICTS), ("Kinds of difference", criteria.KINDS)):
        parts += [f"## {title}", "\n".join(f"- *{word}*: {what}" for word, what in words.items())]
    parts += [
        "## What a test can say",
        "\n".join(f"- *{says}*: {what}" for says, what in criteria.EFFECTS_IN_WORDS.items()),
    ]
    parts += ["## Every test", "\n".join(lines), "## What a verdict rests on, and what it cannot say"]
    return "\n\n".join([*parts, *(" ".join(words.split()) for words in criteria.LIMITS)]) + "\n"


def table_row(name: str, data_type: str, nullable: bool, comment: str) -> str:
    """One line of a column table."""
    kind = data_type.lower().replace("|", "\\|") + ("" if not nullable else " or null")
    return f"| `{name}` | {kind} | {comment.replace('|', chr(92) + '|')} |"


def between_marks(text: str, name: str, body: str) -> str:
    """The text with everything between `<!-- name -->` and `<!-- /name -->` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    assert pattern.search(text), f"README.md has lost its marks <!-- {name} --> and <!-- /{name} -->"
    return pattern.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text)


def code_block(text: str) -> str:
    """A fenced block."""
    return f"```text\n{text}\n```"


def main() -> None:
    """Write the files that differ and say which."""
    for path, text in generated().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
