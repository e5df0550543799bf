"""Every crosscoder variant on tiny real models, from harvest to the pages of the explorer."""

from typing import Any

import duckdb
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_diff import tiny_diff
from trainer.pipeline.commands import run
from trainer.run.progress import read_progress

IN, OUT = ("in-0", "in-1"), ("out-0", "out-1")
LAYERED = {"inputs": IN, "targets": OUT}
RECIPES: dict[str, dict[str, Any]] = {
    "sae": {"variant": "sae", "inputs": ["in-0"], "targets": ["in-0"]},
    "standard": {"variant": "standard"},
    "dfc": {"variant": "dfc", "exclusive_share": 0.1},
    "designated_shared": {"variant": "designated_shared"},
    "weakly_causal": {"variant": "weakly_causal"},
    "strictly_causal": {"variant": "strictly_causal"},
    "local_window": {"variant": "local_window"},
    "clt": {"variant": "clt", **LAYERED},
    "transcoder": {"variant": "transcoder", **LAYERED},
    "custom": {
        "variant": "custom",
        "groups": [
            {"name": "all", "features": 16, "reads": [*IN, *OUT], "writes": ["in-1", "out-1"], "tied": True},
            {"name": "read-only-below", "features": 8, "reads": ["in-0"], "writes": ["out-1"]},
        ],
    },
    "diff_sae": {"variant": "diff_sae"},
}
UNCLAIMED = ("sae", "diff_sae")
"""Variants with one target, whose features make no claims, so that there is nothing to calibrate."""
CALIBRATION = {"rows": 1000, "amplitudes": [0.8], "frequencies": [0.05], "per_cell": 2}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("variants")


@pytest.fixture
def home(shared_folder, monkeypatch):
    """A home in which all runs share the harvest of their sources, beside their models."""
    monkeypatch.setenv("CROSSDIFF_HOME", str(shared_folder / "home"))
    return shared_folder / "home"


def _source(world: Any, name: str) -> dict[str, Any]:
    kind, layer = name.split("-")
    return {
        "name": name,
        "model": str(world / "llama"),
        "hookpoint": f"mlp_{kind}",
        "layer": int(layer),
        "dtype": "float32",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_variant_runs_through_all_stages_and_every_page_of_it_opens(home, name):
    world = home.parent / "world"
    crosscoder = {"features": 24, "sparsity": {"k": 4}} | RECIPES[name]
    sources = [_source(world, each) for each in (IN if name == "diff_sae" else (*IN, *OUT))]
    calibration = {} if name in UNCLAIMED else {"calibration": CALIBRATION}
    recipe = tiny_diff(world, name=name.replace("_", "-"), sources=sources, crosscoder=crosscoder, **calibration)

    folder = run(recipe)

    states = {stage["stage"]: stage["state"] for stage in read_progress(folder)["stages"]}
    expected = "skipped" if name in UNCLAIMED else "done"
    assert states.pop("harvest") in ("done", "skipped"), "variants over the same sources share their activations"
    assert states == dict.fromkeys(("train", "evaluate", "analyse"), "done") | {"calibrate": expected}
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        features = [feature for (feature,) in results.sql("select feature from feature").fetchall()]
        [(sequence,)] = results.sql("select min(sequence) from sequence").fetchall()
        written = results.sql(
            "select distinct source from feature_source join feature using (feature) "
            "where decoder_norm > 0 and firings > 0 order by 1"
        ).fetchall()
        with_logits = results.sql("select distinct source from logit order by 1").fetchall()
    # The difference of two sources is read by the unembedding of the one that is not subtracted.
    assert with_logits == written
    with TestClient(create_app(Settings(home=home))) as client:
        base = f"/runs/{folder.run_id}"
        pages = ["/", base, f"{base}/features", f"{base}/evidence", f"{base}/steer"]
        pages += [f"{base}/sequences/{sequence}?feature=0", f"{base}/features?sort=density", f"{base}/steer?feature=0"]
        pages += [f"{base}/features/{feature}" for feature in features]
        pages += [f"/api/v1{page}" for page in (base, f"{base}/features", f"{base}/features/0")]
        answers = {page: client.get(page).status_code for page in pages}
    assert {page: status for page, status in answers.items() if status != 200} == {}
