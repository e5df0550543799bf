"""Spike-ins are built as specified, and calibration records the verdicts on them."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.worlds.forked import fork
from tests.worlds.tiny_activations import WIDTHS, tiny_activations, tiny_recipe
from tests.worlds.tiny_store import SEQUENCES, tiny_store
from trainer.analysis.rows.codes import CodeSpool
from trainer.calibration.recovery import activation_correlations, direction_cosines, recall_table, recovered_features
from trainer.calibration.samples import write_sample
from trainer.calibration.spike_ins import BLOCK, SpikeIn, SpikeInSet, spiked_store
from trainer.calibration.stage import calibrate
from trainer.crosscoder.crosscoder import Codes, Crosscoder
from trainer.crosscoder.groups import build_groups
from trainer.crosscoder.initial_weights import initial_weights
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


def all_rows(store: ActivationStore, source: str, split: str | None = None) -> torch.Tensor:
    return torch.cat([block.rows[source].float() for block in store.blocks(split)])  # type: ignore[arg-type]


def unchanged(rows: Rows, _: int) -> Rows:
    return rows


@pytest.mark.parametrize(("wanted", "step"), [(700, 2), (5000, 1), (100, 20)])
def test_a_sample_takes_evenly_spaced_training_rows_and_all_that_are_held_out(tmp_path, wanted, step):
    store = tiny_activations(tmp_path / "all", rows=2048)
    sample = write_sample(store, tmp_path / "some", store.sources, rows=wanted, transform=unchanged)

    train = all_rows(store, "left", "train")[::step][:wanted]
    assert torch.allclose(all_rows(sample, "left", "train"), train, atol=0.01)
    assert torch.allclose(all_rows(sample, "left", "held_out"), all_rows(store, "left", "held_out"), atol=0.01)


def test_the_rows_of_a_sample_keep_their_groups_of_documents(tmp_path):
    sequences = tuple(replace(one, document_group=number % 2 + 5) for number, one in enumerate(SEQUENCES))
    store = tiny_store(tmp_path / "all", {}, sequences=sequences)
    sample = write_sample(store, tmp_path / "some", store.sources, rows=8, transform=unchanged)

    def groups(of: ActivationStore) -> list[int]:
        known = of.document_groups()
        return [int(known[number]) for block in of.blocks() for number in block.sequence.tolist()]

    step = store.count("train") // 8
    assert step > 1 and set(groups(sample)) == {5, 6}
    assert groups(sample)[:8] == groups(store)[: store.count("train")][::step][:8]


def test_transforms_get_the_index_of_their_first_row(tmp_path):
    store, calls = tiny_activations(tmp_path / "all", rows=2048), []

    def recorded(rows: Rows, first: int) -> Rows:
        calls.append((first, len(rows["left"])))
        return rows

    write_sample(store, tmp_path / "some", store.sources, rows=1024, transform=recorded)

    assert [first for first, _ in calls] == np.cumsum([0, *(count for _, count in calls)]).tolist()[:-1]


def test_spike_ins_are_added_where_they_belong(tmp_path):
    store = tiny_activations(tmp_path / "all", rows=1024, held_out=128)
    spike_ins = SpikeInSet.from_recipe(SMALL, WIDTHS)
    spiked = spiked_store(store, tmp_path / "spiked", tuple(WIDTHS), PLAIN, spike_ins, rows=1024)
    count = store.manifest.rows
    magnitude = spike_ins.magnitudes(0, count)

    assert [concept.source for concept in spike_ins.concepts] == ["left", "left", "right", "right", None, None]
    for name, width in WIDTHS.items():
        added = all_rows(spiked, name) - all_rows(store, name)
        # bfloat16 has a resolution of 0.5 at 100, the magnitude of the right source.
        assert torch.allclose(added, magnitude @ spike_ins.directions[name] * width**0.5, atol=0.5)
    assert not spike_ins.directions["right"][:2].any()
    assert torch.linalg.vector_norm(spike_ins.directions["left"][[0, 1, 4, 5]], dim=1).tolist() == pytest.approx(
        [1] * 4
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_spike_in_directions_are_not_the_initial_weights_of_the_same_seed(seed):
    widths = dict.fromkeys(WIDTHS, 200)
    spike_ins = SpikeInSet.from_recipe(CalibrationRecipe(seed=seed), widths)
    groups = build_groups(tiny_recipe(crosscoder={"features": 400}).crosscoder, widths)
    weights = initial_weights(widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(seed))

    for name in widths:
        initial = torch.cat([weights[key] for key in weights if key.startswith(f"decoder.{name}.")])
        # Random directions of 200 coordinates have cosines of 0.07, and the largest of 60,000 is about 0.31.
        assert (initial @ spike_ins.directions[name].T).abs().max() < 0.4


def test_magnitudes_do_not_depend_on_the_requested_range():
    spike_ins = SpikeInSet.from_recipe(CalibrationRecipe(amplitudes=(0.5,), frequencies=(0.2,), per_cell=1), WIDTHS)
    whole = spike_ins.magnitudes(0, 2 * BLOCK)

    assert torch.equal(spike_ins.magnitudes(BLOCK - 7, 20), whole[BLOCK - 7 : BLOCK + 13])
    fired = whole[whole > 0]
    assert (whole > 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert 0.25 <= fired.min() < fired.max() <= 0.75


def test_a_spike_in_is_recovered_by_the_feature_of_its_direction_that_fires_with_it(tmp_path, trained):
    spike_ins = SpikeInSet.from_recipe(SMALL, WIDTHS)
    crosscoder = Crosscoder.load(trained[0].path)
    # Feature 0 has the direction of the first shared spike-in, feature 1 of the second; both fire with the first.
    for name in WIDTHS:
        crosscoder.weights[f"decoder.{name}.shared"][:2] = spike_ins.directions[name][4:6]
    magnitude = spike_ins.magnitudes(0, 500)
    dense = torch.zeros(500, crosscoder.features)
    dense[:, 0] = dense[:, 1] = magnitude[:, 4]
    with CodeSpool(tmp_path, crosscoder.features) as codes:
        at = torch.nonzero(dense)
        codes.append(Codes(at[:, 0], at[:, 1], dense[at[:, 0], at[:, 1]], 500))
        codes.flush()
        found = activation_correlations(codes, spike_ins)
        assert found[0] == pytest.approx(
            np.nan_to_num([np.corrcoef(dense[:, 0], one)[0, 1] for one in magnitude.T]), abs=1e-5
        )
        assert direction_cosines(crosscoder, spike_ins)[0, 4] == pytest.approx(1)
        assert recovered_features(codes, crosscoder, spike_ins).tolist() == [-1, -1, -1, -1, 0, -1]


def test_recall_counts_planted_recovered_as_claimed_and_supported():
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
    path = tmp_path_factory.mktemp("trained")
    store, folder = tiny_activations(path / "rows"), RunFolder(path / "run")
    folder.path.mkdir()
    train(tiny_recipe(), store, folder, Progress(folder, "tiny"))
    return folder, store


def calibrated(trained: tuple[RunFolder, ActivationStore]) -> dict[str, object]:
    folder, store = trained
    crosscoder = Crosscoder.load(folder.path)
    calibrate(tiny_recipe(), SMALL, store, crosscoder, folder=folder, progress=Progress(folder, "tiny"))
    found: dict[str, object] = json.loads(folder.calibration.read_text())
    return found


def test_a_calibration_records_every_experiment_and_deletes_its_rows(trained):
    folder, _ = trained
    found = calibrated(trained)
    measures = {(one["kind"], one["measure"]): one["value"] for one in found["measures"]}

    assert {kind for kind, _ in measures} == {"spike-in"}
    assert measures["spike-in", "exclusive.planted"] == 4
    assert measures["spike-in", "shared.planted"] == 2
    assert sum(row["planted"] for row in found["spike_in"]) == 6
    assert {path.name for path in folder.calibration_work.iterdir()} == {"noise-left", "noise-right", "spike-ins"}
    for path in folder.calibration_work.iterdir():
        assert sorted(file.name for file in path.iterdir()) == [
            "crosscoder.json", "crosscoder.safetensors", "metrics.jsonl", "stages.json",
        ]  # fmt: skip


def test_false_claims_are_counted_by_source_and_kind(trained):
    _, store = trained
    found = calibrated(trained)
    nulls = {(one["kind"], one["source"]): one for one in found["null_claims"]}

    assert set(nulls) == {(kind, name) for kind in ("noise", "isotropic", "whitened") for name in WIDTHS}
    for (kind, name), null in nulls.items():
        assert null["supported"] <= null["judged"] <= null["claims"]
        if kind == "noise":
            assert null["rows"] == SMALL.rows
            assert null["claims"] >= 1, "a dedicated group of four features"
            assert (null["excess_95"] is None) == (null["judged"] == 0)
            assert len(found["noise_strengths"][name]) <= null["claims"]
        else:
            assert (null["claims"], null["excess_95"]) == (128, None)
            assert null["rows"] == store.manifest.rows


def test_the_crosscoders_of_a_calibration_are_not_trained_again(trained, monkeypatch):
    first = calibrated(trained)
    monkeypatch.setattr("trainer.calibration.stage.train_together", lambda *_: pytest.fail("trained again"))

    assert calibrated(trained) == first


@pytest.mark.parametrize("experiment", ["noise-left", "spike-ins"])
@pytest.mark.parametrize("killed", [False, True], ids=["Ctrl-C", "kill -9"])
def test_a_calibration_stopped_while_training_resumes_with_the_same_result(
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
        # The last experiment is running once the one before has its crosscoder.
        reached = (folder.calibration_work / "noise-right" / "crosscoder.json").is_file() == (experiment == "spike-ins")
        if reached and training.step == 13:
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


def test_runs_without_claims_and_imported_crosscoders_cannot_be_calibrated(trained):
    folder, store = trained
    crosscoder = Crosscoder.load(folder.path)
    recipe = tiny_recipe(imported={"path": "elsewhere", "format": "sparsify", "sha256": "0"})
    with pytest.raises(RecipeError, match="another program trained"):
        calibrate(recipe, SMALL, store, crosscoder, folder=folder, progress=Progress(folder, "tiny"))
    crosscoder.differences = {"left": ("left", "right")}
    with pytest.raises(RecipeError, match="makes no claims"):
        calibrate(tiny_recipe(), SMALL, store, crosscoder, folder=folder, progress=Progress(folder, "tiny"))
