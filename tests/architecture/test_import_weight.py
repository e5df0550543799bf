"""What must start fast or serve pages does not load what it does not need."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "trainer.models.source", "trainer.crosscoder.crosscoder")


def loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after a statement."""
    script = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(outcome.stdout.split())


def test_serving_pages_loads_neither_torch_nor_the_trainer():
    loaded = loaded_by("import app.main")

    assert "fastapi" in loaded
    assert [name for name in loaded if name.split(".")[0] in ("torch", "transformers", "datasets", "trainer")] == []


def test_the_command_line_loads_nothing_heavy_before_it_knows_the_command():
    loaded = loaded_by("import app.cli")

    heavy = {"torch", "transformers", "datasets", "duckdb", "fastapi", "uvicorn", "sqlalchemy", "numpy", "pydantic"}
    assert sorted(heavy & loaded) == []


def test_reading_a_recipe_needs_no_torch():
    loaded = loaded_by("import trainer.recipe.recipe, trainer.run.folder, trainer.run.progress")

    assert sorted({"torch", "transformers", "numpy"} & loaded) == []
