"""A trained crosscoder is measured where it was trained: on the pretended device, no stage mixes or misses devices."""

import json
import math

import duckdb
import pytest
import torch

import trainer.calibration.stage as calibration_stage
import trainer.pipeline.run as pipeline
from tests.worlds.pretended_device import DEVICE, Away, PretendedDevice
from tests.worlds.tiny_diff import tiny_diff
from tests.worlds.tiny_store import tiny_crosscoder
from trainer import device
from trainer.evaluation import fidelity
from trainer.pipeline.commands import run

COMMON = {"features": 48, "exclusive_share": 0.1}
CROSSCODERS = {
    "dfc": COMMON | {"variant": "dfc", "sparsity": {"k": 4}},
    "one space": COMMON | {"variant": "standard", "sparsity": {"k": 4}},
    "topk": COMMON | {"variant": "dfc", "sparsity": {"k": 4, "kind": "topk"}},
    "residual": {"variant": "residual", "features": 24, "sparsity": {"k": 2}},
    "difference": COMMON | {"variant": "diff_sae", "sparsity": {"k": 4}},
}
NUMBERS = ("density", "max_activation", "coherence", "probe_ratio", "excess", "found_in")
CALIBRATION = {"rows": 1500, "amplitudes": [0.8], "frequencies": [0.05], "per_cell": 2}


def _recipe(folder, name):
    changes = {"crosscoder": CROSSCODERS[name], "training": {"batch": 128, "epochs": 4, "learning_rate": 0.01}}
    if name in ("one space", "difference"):
        models = {"model": str(folder / "llama"), "dtype": "float32"}
        changes["sources"] = [models | {"name": "before", "layer": 0}, models | {"name": "after", "layer": 1}]
    if name == "one space":
        changes["analysis"] = {"same_space": [["before", "after"]], "contexts": {"top": 4, "window": 12}}
    if name != "difference":
        changes["calibration"] = CALIBRATION
    return tiny_diff(folder, **changes)


def _measured(folder):
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        numbers = results.sql(f"select {', '.join(NUMBERS)} from feature order by feature").fetchall()
        words = results.sql("select owner, verdict, kind, firings from feature order by feature").fetchall()
        scaling = results.sql("select nu_error, beta_reconstruction, readout from feature_source").fetchall()
        logits = results.sql("select feature, source, rank, token from logit order by all").fetchall()
    evaluation = [row["value"] for row in json.loads(folder.evaluation.read_text())]
    return words, logits, [*numbers, *scaling, evaluation]


def _known(row):
    return [math.nan if value is None else value for value in row]


@pytest.mark.parametrize("name", CROSSCODERS)
def test_every_measuring_stage_computes_on_the_device_and_measures_the_same(tmp_path, monkeypatch, name):
    recipe = _recipe(tmp_path / "world", name)
    run(recipe, ("training.seed=1",), stages=("harvest", "train"))  # another run of the comparison
    folder = run(recipe)
    words, logits, numbers = _measured(folder)
    for product in (folder.evaluation, folder.calibration, folder.current):
        product.unlink(missing_ok=True)

    for module in (pipeline, calibration_stage):
        monkeypatch.setattr(module, "measuring_device", lambda _: DEVICE)
    # A wrapper made outside of inference mode has no views inside of it.
    monkeypatch.setattr(fidelity, "add_sequence", torch.no_grad()(fidelity.add_sequence.__wrapped__))
    with PretendedDevice() as pretended:
        run(recipe)

    assert pretended.away["aten.mm.default"] > 10, "products ran there"
    assert pretended.away["aten._linalg_eigh.default"] > 0, "readouts were fitted there"
    assert not pretended.here["aten._linalg_eigh.default"]
    other_words, other_logits, other_numbers = _measured(folder)
    assert other_words == words and other_logits == logits
    for row, other_row in zip(numbers, other_numbers, strict=True):
        assert _known(other_row) == pytest.approx(_known(row), rel=1e-3, abs=1e-5, nan_ok=True)


def test_a_crosscoder_moves_with_everything_it_holds():
    crosscoder = tiny_crosscoder()
    with PretendedDevice():
        moved = crosscoder.to(DEVICE)
        held = [*moved.weights.values(), *moved.threshold.values(), *(one.mean for one in moved.normaliser.values())]

    assert moved.device == DEVICE and all(isinstance(tensor, Away) for tensor in held)
    assert crosscoder.to(torch.device("cpu")) is crosscoder
    assert all(torch.equal(moved.weights[name].here, tensor) for name, tensor in crosscoder.weights.items())


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with PretendedDevice():
        away = torch.ones(3, device=DEVICE)
        assert (away + 1.0).device == DEVICE and (away * torch.tensor(2.0)).cpu().tolist() == [2.0] * 3
        assert away[torch.tensor([0, 2])].device == DEVICE
        with pytest.raises(AssertionError, match="mixes tensors"):
            away + torch.ones(3)
        with pytest.raises((TypeError, RuntimeError)):
            away.numpy()


def test_what_is_measured_is_never_on_a_device_without_float64(monkeypatch):
    monkeypatch.setattr(device, "pick_device", lambda name: torch.device("mps" if name == "auto" else name))

    assert device.measuring_device("auto") == torch.device("cpu")
    assert device.measuring_device("cuda:1") == torch.device("cuda:1")
