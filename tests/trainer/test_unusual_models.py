"""Whole runs with models of unusual families: all stages pass, and what cannot be measured is told."""

import logging
from pathlib import Path

import duckdb
import pytest
import yaml

from tests.worlds.families import save_family
from tests.worlds.tiny_diff import tiny_diff
from trainer.pipeline.commands import run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "has_logits"),
    [("opt-350m", False), ("modernbert-decoder", False), ("mamba", True), ("recurrent_gemma", True), ("xglm", True)],
)
def test_a_run_passes_all_stages_and_says_whose_logits_are_left_out(tmp_path: Path, monkeypatch, family, has_logits):
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)
    path = tiny_diff(tmp_path)
    save_family(family, tmp_path / "unusual")
    recipe = yaml.safe_load(path.read_text())
    recipe["sources"][1] |= {"model": str(tmp_path / "unusual"), "layer": 1}
    recipe["harvest"] |= {"rows": 1000, "minimum_coverage": 0.0}
    path.write_text(yaml.safe_dump(recipe))

    folder = run(path)

    with duckdb.connect(str(folder.results()), read_only=True) as results:
        sources = results.sql("select distinct source from logit order by 1").fetchall()
    assert sources == ([(0,), (1,)] if has_logits else [(0,)])
    told = "right: which tokens its features promote is left out, because its" in folder.log.read_text()
    assert told is not has_logits
