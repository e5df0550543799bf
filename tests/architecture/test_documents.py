"""What the documents say about the code is what the code says."""

import re
from pathlib import Path

import duckdb
import pytest

from docs.generate import generated, tree

ROOT = Path(__file__).parents[2]


GENERATED = ["README.md", "docs/commands.md", "docs/evidence.md", "docs/modules.md", "docs/results.md"]


@pytest.mark.parametrize("name", GENERATED)
def test_a_document_holds_what_make_docs_would_write(name: str):
    path = ROOT / name

    assert path.read_text(encoding="utf-8") == generated()[path], "run `make docs`"


def test_the_tree_lists_every_module_once_with_a_sentence():
    lines = [line for line in tree().splitlines() if line]
    modules = [path for package in ("app", "trainer") for path in (ROOT / package).rglob("*.py")]

    assert len(lines) == len(modules)
    assert [line for line in lines if not re.search(r"\S {2,}\S.*\.$", line)] == []


def test_every_table_and_column_of_a_results_file_has_a_comment():
    with duckdb.connect() as database:
        database.execute((ROOT / "trainer" / "results" / "schema.sql").read_text(encoding="utf-8"))
        silent = database.execute(
            "select table_name, column_name from duckdb_columns() "
            "where not internal and (comment is null or comment not like '%.') "
            "union all select table_name, null from duckdb_tables() where comment is null or comment not like '%.'"
        ).fetchall()

    assert silent == []


def test_every_link_between_documents_leads_somewhere():
    documents = [path for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern)]
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
        if "://" not in target and not (path.parent / target).exists()
    ]

    assert broken == []


def test_every_decision_has_the_same_four_parts_and_fits_a_page():
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    headings = {
        path.name: re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) for path in decisions
    }

    assert [path.name[:4] for path in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
    assert {
        name: parts
        for name, parts in headings.items()
        if parts != ["Context", "Decision", "Consequences", "Alternatives considered"]
    } == {}
    assert [path.name for path in decisions if len(path.read_text(encoding="utf-8").split()) > 500] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_document_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    documents = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]

    assert [name for name in documents if f"({name})" not in index] == []
