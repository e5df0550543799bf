"""The analysis reads other layers where the store lets it, and goes on where it does not."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.worlds.tiny_diff import result_rows, tiny_diff
from trainer.pipeline.commands import run, runs_of

RESIDUAL = ("crosscoder.residual={features: 16, k: 2, trainings: 2}",)


@pytest.mark.parametrize("token_ids", [True, False], ids=["with token ids", "without"])
def test_other_layers_are_read_if_the_store_has_token_ids(tmp_path: Path, token_ids: bool):
    recipe = tiny_diff(tmp_path)
    (harvest,) = runs_of(recipe, RESIDUAL)
    harvest.execute(("harvest",))
    store = shutil.copytree(harvest.store_path(), tmp_path / "foreign")
    if not token_ids:
        table = pq.read_table(store / "sequences.parquet")
        pq.write_table(table.drop_columns(["token_ids"]), store / "sequences.parquet")
        manifest = json.loads((store / "manifest.json").read_text())
        manifest["sequences_sha256"] = None  # other programs need not give it
        (store / "manifest.json").write_text(json.dumps(manifest))

    found = run(recipe, RESIDUAL, activations=store, stages=("train", "evaluate", "analyse"))

    layers = dict(
        result_rows(found, "select source, list(distinct layer order by layer) from other_layer group by all")
    )
    # Of three layers of `left` and four of `right`, without those compared, 1 and 2.
    assert layers == ({0: [0, 2], 1: [0, 1, 3]} if token_ids else {})
    assert result_rows(found, "select count(*) from feature where probe_ratio is not null")[0][0] > 0
