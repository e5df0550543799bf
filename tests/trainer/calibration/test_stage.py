"""Calibration: rows whose truth is known are made as said, and what is known of them comes back."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from tests.worlds.forked import fork
from tests.worlds.tiny_activations import WIDTHS, tiny_activations, tiny_recipe
from trainer.analysis.rows.codes import CodeSpool
from trainer.calibration.null import LEAST, MOST, null_store
from trainer.calibration.recovery import came_back, correlations, directions, recall_table
from trainer.calibration.samples import write_sample
from trainer.calibration.spike_ins import BLOCK, Planted, SpikeIn, spiked_store
from trainer.calibration.stage import calibrate
from trainer.crosscoder.crosscoder import Codes, Crosscoder, initial
from trainer.crosscoder.groups import preset
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import RecipeError
from trainer.recipe.measuring import CalibrationRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, Rows
from trainer.training.stage import train
from trainer.training.trainer import Training

SMALL = CalibrationRecipe(rows=1500, amplitudes=(0.8,), frequencies=(0.03,), per_cell=2)
PLAIN = {name: Normaliser(torch.zeros(width), 1.0) for name, width in WIDTHS.items()}


def everything(store: ActivationStore, source: str, split: str | None = None) -> torch.Tensor:
    return torch.cat([block.rows[source].float() for block in store.blocks(split)])  # type: ignore[arg-type]


def unchanged(rows: Rows, _: int) -> Rows:
    return rows


@pytest.mark.parametrize(("wanted", "step"), [(700, 2), (5000, 1), (100, 20)])
def test_a_sample_takes_rows_at_even_distances_of_either_split(tmp_path, wanted, step):
    store = tiny_activations(tmp_path / "all", rows=2048)
    sample = write_sample(store, tmp_path / "some", store.sources, rows=wanted, change=unchanged)

    for split in ("train", "held_out"):
        rows = everything(store, "left", split)[::step]
        kept = rows[:wanted] if split == "train" else rows
        assert torch.allclose(everything(sample, "left", split), kept, atol=0.01)


def test_changes_are_told_which_row_they_begin_with(tmp_path):
    store, seen = tiny_activations(tmp_path / "all", rows=2048), []

    def noted(rows: Rows, first: int) -> Rows:
        seen.append((first, len(rows["left"])))
        return rows

    write_sample(store, tmp_path / "some", store.sources, rows=1024, change=noted)

    assert [first for first, _ in seen] == np.cumsum([0, *(count for _, count in seen)]).tolist()[:-1]


def test_the_sources_of_a_null_run_are_turned_and_scaled_copies_of_the_first(tmp_path):
    store = tiny_activations(tmp_path / "all", rows=1024)
    normaliser = Normaliser(torch.full((12,), 0.1), 2.0)
    null = null_store(store, tmp_path / "null", tuple(WIDTHS), normaliser, rows=1024, seed=1)
    original = normaliser(everything(store, "left"))

    assert null.widths == {"left": 12, "right": 12}
    for name in WIDTHS:
        # A rotation keeps all inner products; rows lost the digits that bfloat16 has no room for.
        copy = everything(null, name)
        factor = float(copy.square().sum() / original.square().sum())
        assert LEAST**2 <= factor <= MOST**2
        assert torch.allclose(copy @ copy.T, factor * original @ original.T, atol=0.02 * factor * 12)
    assert not torch.allclose(everything(null, "left"), everything(null, "right"), atol=0.1)


def test_spike_ins_are_added_where_they_belong(tmp_path):
    store = tiny_activations(tmp_path / "all", rows=1024, held_out=128)
    planted = Planted.of(SMALL, WIDTHS)
    spiked = spiked_store(store, tmp_path / "spiked", tuple(WIDTHS), PLAIN, planted, rows=1024)
    count = store.manifest.rows
    magnitude = planted.magnitudes(0, count)

    assert [concept.source for concept in planted.concepts] == ["left", "left", "right", "right", None, None]
    for name, width in WIDTHS.items():
        added = everything(spiked, name) - everything(store, name)
        # bfloat16 has steps of a half at 100, where the right source lies.
        assert torch.allclose(added, magnitude @ planted.directions[name] * width**0.5, atol=0.5)
    assert not planted.directions["right"][:2].any()
    assert torch.linalg.vector_norm(planted.directions["left"][[0, 1, 4, 5]], dim=1).tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_planted_is_no_weight_that_a_training_of_the_same_seed_begins_with(seed):
    widths = dict.fromkeys(WIDTHS, 200)
    planted = Planted.of(CalibrationRecipe(seed=seed), widths)
    groups = preset(tiny_recipe(crosscoder={"features": 400}).crosscoder, widths)
    weights = initial(widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(seed))

    for name in widths:
        begun = torch.cat([weights[key] for key in weights if key.startswith(f"decoder.{name}.")])
        # Random directions of 200 coordinates have cosines of 0.07, and the largest of 60,000 is about 0.31.
        assert (begun @ planted.directions[name].T).abs().max() < 0.4


def test_magnitudes_are_the_same_however_they_are_asked_for():
    planted = Planted.of(CalibrationRecipe(amplitudes=(0.5,), frequencies=(0.2,), per_cell=1), WIDTHS)
    whole = planted.magnitudes(0, 2 * BLOCK)

    assert torch.equal(planted.magnitudes(BLOCK - 7, 20), whole[BLOCK - 7 : BLOCK + 13])
    fired = whole[whole > 0]
    assert (whole > 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert 0.25 <= fired.min() < fired.max() <= 0.75


def test_a_spike_in_comes_back_as_the_feature_that_points_its_way_and_fires_with_it(tmp_path, trained):
    planted = Planted.of(SMALL, WIDTHS)
    crosscoder = Crosscoder.load(trained[0].path)
    # Feature 0 writes what the first shared spike-in is, feature 1 what the second is but fires with the first.
    for name in WIDTHS:
        crosscoder.weights[f"decoder.{name}.shared"][:2] = planted.directions[name][4:6]
    magnitude = planted.magnitudes(0, 500)
    dense = torch.zeros(500, crosscoder.features)
    dense[:, 0] = dense[:, 1] = magnitude[:, 4]
    with CodeSpool(tmp_path, crosscoder.features) as codes:
        at = torch.nonzero(dense)
        codes.append(Codes(at[:, 0], at[:, 1], dense[at[:, 0], at[:, 1]], 500))
        codes.flush()
        found = correlations(codes, planted)
        assert found[0] == pytest.approx(
            np.nan_to_num([np.corrcoef(dense[:, 0], one)[0, 1] for one in magnitude.T]), abs=1e-5
        )
        assert directions(crosscoder, planted)[0, 4] == pytest.approx(1)
        assert came_back(codes, crosscoder, planted).tolist() == [-1, -1, -1, -1, 0, -1]


def test_recall_counts_what_was_planted_found_claimed_and_supported():
    concepts = (*[SpikeIn("left", 0.1, 0.01)] * 4, SpikeIn(None, 0.1, 0.01))
    owner, verdict = ["left", "right", "left"], ["supported", "supported", "refuted"]
    table = recall_table(concepts, np.array([2, -1, 0, 1, 0]), owner, verdict)

    assert table == [
        {"placement": "exclusive", "source": "left", "amplitude": 0.1, "frequency": 0.01,
         "planted": 4, "recovered": 3, "as_claimed": 2, "supported": 1},
        {"placement": "shared", "source": None, "amplitude": 0.1, "frequency": 0.01,
         "planted": 1, "recovered": 1, "as_claimed": 0, "supported": 1},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[RunFolder, ActivationStore]:
    place = tmp_path_factory.mktemp("trained")
    store, folder = tiny_activations(place / "rows"), RunFolder(place / "run")
    folder.path.mkdir()
    train(tiny_recipe(), store, folder, Progress(folder, "tiny"))
    return folder, store


def calibrated(trained: tuple[RunFolder, ActivationStore]) -> dict[str, object]:
    folder, store = trained
    crosscoder = Crosscoder.load(folder.path)
    calibrate(tiny_recipe(), SMALL, store, crosscoder, folder=folder, progress=Progress(folder, "tiny"))
    found: dict[str, object] = json.loads(folder.calibration.read_text())
    return found


def test_a_calibration_says_what_became_of_both_experiments_and_leaves_no_rows_behind(trained):
    folder, _ = trained
    found = calibrated(trained)
    measures = {(one["kind"], one["measure"]): one["value"] for one in found["measures"]}

    # Two dedicated groups of four features, and whatever else leans to one side.
    assert measures["null", "claims"] >= 4
    assert measures["null", "supported"] == 0
    assert measures["spike-in", "exclusive.planted"] == 4
    assert measures["spike-in", "shared.planted"] == 2
    assert sum(row["planted"] for row in found["spike_in"]) == 6
    assert sorted(path.name for path in (folder.calibration_work / "null").iterdir()) == [
        "crosscoder.json", "crosscoder.safetensors", "metrics.jsonl", "stages.json",
    ]  # fmt: skip


def test_what_was_trained_to_calibrate_is_not_trained_again(trained, monkeypatch):
    first = calibrated(trained)
    monkeypatch.setattr("trainer.calibration.stage.train", lambda *_: pytest.fail("trained again"))

    assert calibrated(trained) == first


@pytest.mark.parametrize("experiment", ["null", "spike-ins"])
@pytest.mark.parametrize("killed", [False, True], ids=["Ctrl-C", "kill -9"])
def test_a_calibration_stopped_while_it_trains_goes_on_from_there_and_ends_the_same(
    trained, tmp_path, monkeypatch, experiment, killed
):
    whole, store = trained
    expected = calibrated(trained)
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole.path, folder.path, ignore=shutil.ignore_patterns("calibration*"))
    steps, run_step = [], Training.run_step

    def counted(training: Training, rows: Rows) -> dict[str, float]:
        steps.append(training.step)
        return run_step(training, rows)

    def stopped(training: Training, rows: Rows) -> dict[str, float]:
        # Of the two experiments, the second has been reached when the first has its crosscoder.
        here = (folder.calibration_work / "null" / "crosscoder.json").is_file() == (experiment == "spike-ins")
        if here and training.step == 13:
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return run_step(training, rows)

    def stop() -> None:
        monkeypatch.setattr(Training, "run_step", stopped)
        calibrated((folder, store))

    process = fork(stop)
    process.join()
    assert process.exitcode == (-signal.SIGKILL if killed else 1)
    assert (folder.calibration_work / experiment / "rows").exists() == killed

    monkeypatch.setattr(Training, "run_step", counted)
    assert calibrated((folder, store)) == expected
    assert steps[0] == 10, "the last checkpoint"
    assert not list(folder.calibration_work.glob("*/rows")) + list(folder.calibration_work.glob("*/checkpoints"))


def test_what_claims_nothing_cannot_be_calibrated(trained):
    folder, store = trained
    crosscoder = Crosscoder.load(folder.path)
    recipe = tiny_recipe(imported={"path": "elsewhere", "format": "sparsify", "sha256": "0"})
    with pytest.raises(RecipeError, match="another program trained"):
        calibrate(recipe, SMALL, store, crosscoder, folder=folder, progress=Progress(folder, "tiny"))
    crosscoder.differences = {"left": ("left", "right")}
    with pytest.raises(RecipeError, match="claims nothing"):
        calibrate(tiny_recipe(), SMALL, store, crosscoder, folder=folder, progress=Progress(folder, "tiny"))
