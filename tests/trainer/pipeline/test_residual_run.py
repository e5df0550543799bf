"""Whole runs of residual dictionaries on tiny models, from harvest to the results that pages read."""

import json

import pytest

from app.worker.direction import read_direction
from tests.worlds.tiny_diff import result_rows, tiny_diff
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.pipeline.commands import run

GROUPS = ("left-given-right", "right-given-left")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds, trained side by side, with a calibration."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("CROSSDIFF_HOME", str(home / "data"))
        recipe = tiny_diff(
            home / "world",
            crosscoder={"variant": "residual", "features": 24, "sparsity": {"k": 4}},
            calibration={"rows": 1000, "amplitudes": [0.8], "frequencies": [0.05], "per_cell": 2},
            sweep={"training.seed": [0, 1]},
        )
        yield run(recipe)


def test_features_belong_to_the_source_whose_residual_they_describe(folder):
    assert result_rows(folder, "select name from source order by source") == [("left",), ("right",)]
    owners = "select distinct group_name, owner from feature where firings > 0 order by 1"
    assert result_rows(folder, owners) == [(GROUPS[0], "left"), (GROUPS[1], "right")]
    assert result_rows(folder, "select count(*) from feature") == [(48,)]
    shares = "select distinct owner, source, norm_share from feature join feature_source using (feature)"
    assert set(result_rows(folder, shares)) == {
        ("left", 0, 1.0),
        ("left", 1, 0.0),
        ("right", 1, 1.0),
        ("right", 0, 0.0),
    }


def test_claims_have_evidence_on_both_sides_and_are_looked_for_in_the_other_seed(folder):
    assert result_rows(folder, "select count(*) from feature where firings > 0 and verdict = ''") == [(0,)]
    assert result_rows(folder, "select distinct source from probe order by 1") == [(0,), (1,)]
    assert result_rows(folder, "select count(*) from feature where excess > 0")[0][0] > 10
    assert result_rows(folder, "select distinct looked_in from feature where firings > 0") == [(1,)]
    assert result_rows(folder, "select count(*) from firing where bucket = 'top'")[0][0] > 20
    assert result_rows(folder, "select count(*) from neighbour")[0][0] > 0


def test_logit_effects_are_those_of_the_target_alone(folder):
    pairs = "select distinct owner, source from logit join feature using (feature) order by 1"
    assert result_rows(folder, pairs) == [("left", 0), ("right", 1)]


def test_the_evaluation_says_what_the_prediction_and_the_features_explain(folder):
    measures = dict(
        result_rows(
            folder, "select measure || source, value from evaluation where source is not null and measure like 'var%'"
        )
    )
    for source in range(2):
        assert measures[f"variance_predicted{source}"] < measures[f"variance_explained{source}"] < 1
    assert result_rows(folder, "select count(*) from evaluation where measure = 'kl_reconstruction'") == [(2,)]


def test_a_calibration_has_the_noise_null_of_each_target_and_the_spike_ins(folder):
    calibration = json.loads(folder.calibration.read_text())

    nulls = {(one["kind"], one["source"]) for one in calibration["null_claims"]}
    assert {("noise", "left"), ("noise", "right")} <= nulls
    planted = {(row["placement"], row["source"]): row for row in calibration["spike_in"]}
    for (placement, _), row in planted.items():
        if placement == "exclusive":
            assert row["as_claimed"] == row["recovered"]
        else:
            assert row["as_claimed"] == 0, "no residual feature claims to be shared"


def test_steering_pushes_along_the_target_in_its_own_units(folder):
    crosscoder = Crosscoder.load(folder.path)
    for feature, source, other in ((3, "left", "right"), (30, "right", "left")):
        found = read_direction(folder, feature, source)
        assert found.writes and not read_direction(folder, feature, other).writes
        expected = crosscoder.decoder(source)[feature] / crosscoder.normaliser[source].scale
        assert found.vector.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-7)
