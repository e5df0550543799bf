"""Estimates of stages against hand-computed arithmetic, and settings that would fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from trainer.kernels import int8_search
from trainer.models.shapes import ModelShape
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.resources import estimate
from trainer.resources.estimate import StageCost, side_by_side, stage_costs
from trainer.resources.fit import Available, exceeded_resource, fit_problems, largest_fitting
from trainer.resources.speed import MachineSpeed, measure_speed

WIDTHS = {"left": 100, "right": 60}
SHAPES = {
    "left": ModelShape(100, 1000, 900_000, 500_000, 400_000, 800_000, 4, 8),
    "right": ModelShape(60, 2000, 700_000, 300_000, 100_000, 600_000, 2, 6),
}
AVAILABLE = Available(memory=1e15, disk=1e15)


def recipe(**changes) -> Recipe:
    sources = [{"name": name, "model": "none", "layer": 1, "dtype": "bfloat16"} for name in WIDTHS]
    data: dict[str, Any] = {
        "name": "mine",
        "sources": sources,
        "corpus": {"mix": [{"dataset": "some/text"}], "held_out": 0.2, "context": 50},
        "harvest": {"rows": 80_000},
        "crosscoder": {"variant": "standard", "features": 1000, "sparsity": {"k": 10}},
        "training": {"batch": 1000, "epochs": 3, "device": "cpu"},
    }
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    return parse_recipe(data, origin="the test")


def cost_of_stage(stage: str, one: Recipe, **options) -> StageCost:
    return {cost.stage: cost for cost in stage_costs(one, SHAPES, WIDTHS, **options)}[stage]


def test_a_harvest_stores_two_bytes_per_activation_and_the_rows_positions():
    # 80,000 training rows and 20,000 held out, each 160 activations of 2 bytes and twice 12 bytes for its position.
    assert cost_of_stage("harvest", recipe()).disk == pytest.approx(100_000 * (320 + 24))


def test_a_harvest_holds_the_cut_models_or_the_last_one_whole_while_it_is_loaded():
    plain = estimate.PROCESS_BYTES + estimate.TOKENIZER_BYTES * 3000
    reading = 2 * 800_000 + estimate.CORPUS_BYTES + estimate.POOL_ROWS * 320 * 3
    assert cost_of_stage("harvest", recipe()).memory == pytest.approx(plain + reading)

    large = SHAPES | {"right": replace(SHAPES["right"], parameters=10**9)}
    found = stage_costs(recipe(), large, WIDTHS)[0]
    assert found.memory == pytest.approx(plain + 2 * 500_000 + 2 * 10**9)


def test_training_takes_sixteen_bytes_per_weight_twelve_more_in_a_checkpoint_and_a_window_of_rows():
    found = cost_of_stage("train", recipe())

    # Encoder and decoder of 160 numbers and a bias for 1,000 features.
    weights, window = 1000 * 321, 80_000 * 320
    batch = 1000 * (12 * 160 + 24 * 10)
    assert found.memory == pytest.approx(
        estimate.PROCESS_BYTES + estimate.KERNEL_CACHE_BYTES + 28 * weights + 2 * 160_000 + batch + window
    )
    assert found.mapped == window
    assert found.disk == 3 * 12 * weights + 4 * weights


def test_residual_dictionaries_read_one_source_in_training_and_all_when_saved():
    one = recipe(crosscoder={"variant": "residual", "features": 500})
    speed = MachineSpeed(product=1e9, copy=1e9)

    # Encoder, decoder and bias of 500 features for 100 numbers, and of 500 for 60; saved ones read all 160.
    trained, saved = 500 * (201 + 121), 500 * (261 + 221)
    found = cost_of_stage("train", one)
    batch = 1000 * (12 * 160 + 24 * 2 * 10)
    assert found.memory - found.mapped == pytest.approx(
        estimate.PROCESS_BYTES + estimate.KERNEL_CACHE_BYTES + 28 * trained + 2 * 500 * 160 + batch
    )
    assert found.disk == 3 * 12 * trained + 4 * saved
    # Each of 240 batches is predicted, 100 numbers from 60 and 60 from 100, and encoded.
    seconds = 2 * 240_000 * (500 * 160 + 2 * 6000) / 1e9 / estimate.DENSE_SHARE
    seconds += 240 * estimate.STEP_TRAFFIC_BYTES * trained / 1e9
    assert cost_of_stage("train", one, speed=speed).seconds == pytest.approx(seconds)
    # Both dictionaries are active on a row.
    plain = cost_of_stage("analyse", recipe(crosscoder={"features": 1000}))
    assert cost_of_stage("analyse", one).disk - plain.disk == pytest.approx(100_000 * 10 * estimate.FIRING_BYTES)


def test_times_are_arithmetic_over_the_speed_of_a_bare_product():
    speed = MachineSpeed(product=1e9, copy=1e9)

    # Three times 80 batches of 1,000 rows, each with 160 x 1,000 multiplications and additions; 321 weights a feature.
    seconds = 2 * 240_000 * 160_000 / 1e9 / estimate.DENSE_SHARE + 240 * estimate.STEP_TRAFFIC_BYTES * 321_000 / 1e9
    assert cost_of_stage("train", recipe(), speed=speed).seconds == pytest.approx(seconds)
    # Attention costs layers x width x context beside the weights' products: 4 x 100 x 50 and 2 x 60 x 50.
    each = 400_000 + 20_000 + 100_000 + 6_000
    reading = 2 * 110_000 * each / 1e9 / estimate.HARVEST_SHARE + 2 * 1_600_000 / estimate.LOADING_BYTES_PER_S
    assert cost_of_stage("harvest", recipe(), speed=speed).seconds == pytest.approx(reading)
    assert cost_of_stage("train", recipe()).seconds is None


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, estimate.INT8_SHARE),
        ({"training": {"precision": "bfloat16"}}, estimate.DENSE_SHARE),
        ({"crosscoder": {"features": 8_000, "sparsity": {"kind": "topk"}}}, estimate.DENSE_SHARE),
    ],
)
def test_int8_search_takes_less_time_than_the_dense_product(changes, share, monkeypatch):
    monkeypatch.setattr(int8_search, "tile_shape", lambda: int8_search.TileShape(16, 12))
    speed = MachineSpeed(product=1e9, copy=float("inf"))
    one = recipe(**{"crosscoder": {"features": 8_000}} | changes)

    assert cost_of_stage("train", one, speed=speed).seconds == pytest.approx(2 * 240_000 * 160 * 8_000 / 1e9 / share)


def test_a_group_costs_only_the_sources_it_reads_and_writes():
    dfc = recipe(crosscoder={"variant": "dfc", "exclusive_share": 0.1, "features": 1000})

    # 800 shared features of 160, 100 of 100 and 100 of 60, encoder and decoder, and a bias each.
    weights = 2 * (800 * 160 + 100 * 100 + 100 * 60) + 1000
    assert cost_of_stage("train", dfc).disk == 40 * weights


def test_a_stream_keeps_its_sample_and_holds_models_and_buffer_while_it_trains():
    stored = recipe(training={"epochs": 1})
    streamed = recipe(training={"epochs": 1}, harvest={"stream": {"sample": 8_000, "buffer": 10_000}})

    assert cost_of_stage("harvest", streamed).disk == pytest.approx(cost_of_stage("harvest", stored).disk / 10)
    plain, found = cost_of_stage("train", stored), cost_of_stage("train", streamed)
    models = cost_of_stage("harvest", stored).memory - estimate.PROCESS_BYTES
    assert found.memory == pytest.approx(plain.memory - plain.mapped + models + 1.5 * 10_000 * 320)
    assert found.disk == pytest.approx(plain.disk + 1.5 * 10_000 * 320)
    speed = MachineSpeed(1e9, 1e9)
    both = (
        cost_of_stage("train", stored, speed=speed).seconds
        + cost_of_stage("harvest", stored, speed=speed).seconds * 0.72
    )
    assert cost_of_stage("train", streamed, speed=speed).seconds == pytest.approx(both, rel=0.01), (
        "72,000 of 100,000 rows"
    )


def test_a_calibration_trains_and_judges_once_per_source_and_once_more_on_fewer_rows():
    speed, one = MachineSpeed(1e9, 1e9), recipe(calibration={"rows": 8_000})
    found = cost_of_stage("calibrate", one, speed=speed)
    training = 2 * 24_000 * 160_000 / 1e9 / estimate.DENSE_SHARE + 24 * estimate.STEP_TRAFFIC_BYTES * 321_000 / 1e9
    judging = 2 * 8_000 * 160_000 * estimate.ANALYSIS_ENCODES / 1e9

    assert found.seconds == pytest.approx(3 * (training + judging))
    assert found.memory < cost_of_stage("analyse", one).memory + cost_of_stage("train", one).memory


def test_a_run_that_fits_has_no_problems():
    assert fit_problems(recipe(), SHAPES, WIDTHS, AVAILABLE) == {}


def test_a_disk_that_is_too_small_names_the_rows_that_fit_and_the_stream():
    free = replace(AVAILABLE, disk=20e6)
    problems = fit_problems(recipe(), SHAPES, WIDTHS, free)

    # 34.4 MB are needed for 80,000 rows; 40,000 take half of it.
    assert problems["harvest"].startswith("harvest needs about 34.4 MB of disk and 20 MB are free.")
    assert "harvest.rows=40000" in problems["harvest"]
    assert "harvest.stream" not in problems["harvest"], "its sample of 100,000 rows is no smaller"
    larger = recipe(harvest={"rows": 8_000_000})
    assert (
        "harvest.stream={} with training.epochs=1"
        in fit_problems(larger, SHAPES, WIDTHS, replace(AVAILABLE, disk=0.1e9))["harvest"]
    )


def test_the_store_counts_against_the_disk_of_later_stages():
    analysis, harvest = cost_of_stage("analyse", recipe()).disk, cost_of_stage("harvest", recipe()).disk

    assert fit_problems(recipe(), SHAPES, WIDTHS, replace(AVAILABLE, disk=analysis + harvest)) == {}
    both = fit_problems(recipe(), SHAPES, WIDTHS, replace(AVAILABLE, disk=analysis + harvest - 1e5))
    assert list(both) == ["analyse"]
    assert fit_problems(recipe(), SHAPES, WIDTHS, replace(AVAILABLE, disk=analysis), stages=["analyse"]) == {}


def test_memory_that_is_too_small_names_the_dictionary_that_fits():
    large = recipe(crosscoder={"features": 2**20})
    problems = fit_problems(large, SHAPES, WIDTHS, replace(AVAILABLE, memory=4e9))

    # 321 weights a feature: 2^18 take 2.4 GB at 28 bytes, beside 1.4 GB of the process itself.
    assert "crosscoder.features=262144" in problems["train"]


def test_mapped_files_are_no_reason_to_refuse():
    wide = recipe(harvest={"rows": 10**7})
    found = cost_of_stage("train", wide)

    assert found.mapped == 2**30 // 320 * 320 or found.mapped == 2**19 * 320
    assert "train" not in fit_problems(wide, SHAPES, WIDTHS, replace(AVAILABLE, memory=found.memory - found.mapped))


def test_a_gpu_that_is_too_small_is_reported():
    short = StageCost("train", 1e9, 0, 0, None, device=2e9)

    assert exceeded_resource(short, Available(1e10, 1e10, device=1e9)) == "device"
    assert exceeded_resource(short, Available(1e10, 1e10, device=3e9)) is None


def test_halving_stops_at_the_first_that_fits():
    assert largest_fitting(100, lambda n: n <= 30) == 25
    assert largest_fitting(100, lambda n: n > 100) is None


def test_the_speed_of_this_machine_is_measured_in_processor_time():
    threads = torch.get_num_threads()
    speed = measure_speed(torch.device("cpu"))

    assert speed.product > 1e8 and speed.copy > 1e7
    assert torch.get_num_threads() == threads


def test_what_arithmetic_says_holds_no_constant_that_was_measured(monkeypatch):
    before = [cost.least for cost in stage_costs(recipe(calibration={"rows": 8_000}), SHAPES, WIDTHS)]
    measured = [name for name in vars(estimate) if name.isupper() and isinstance(getattr(estimate, name), float)]
    assert len(measured) > 8
    for name in (*measured, "TOKENIZER_BYTES", "LOADED_BYTES", "ROW_POSITION_BYTES", "LOGIT_BYTES"):
        monkeypatch.setattr(estimate, name, 1e15)

    assert [cost.least for cost in stage_costs(recipe(calibration={"rows": 8_000}), SHAPES, WIDTHS)] == before
    harvest, train, evaluate, calibrate, analyse = before
    # Weights of 2 bytes in models, 16 bytes for each of the 321,000 of a training, 4 in a saved crosscoder.
    assert harvest == estimate.Least(memory=2 * 800_000, disk=100_000 * 320)
    assert train == calibrate == estimate.Least(memory=16 * 321_000 + 4 * 1000 * 160, disk=4 * 321_000)
    assert evaluate.memory == 2 * 1_600_000 + 4 * 321_000
    assert analyse.memory == evaluate.memory + 8 * 160_000


def test_an_estimate_that_exceeds_what_is_free_is_not_an_impossibility():
    found = cost_of_stage("train", recipe())
    between = replace(AVAILABLE, memory=(found.least.memory + found.memory) / 2)

    assert "train" in fit_problems(recipe(), SHAPES, WIDTHS, between)
    assert fit_problems(recipe(), SHAPES, WIDTHS, between, least=True).get("train") is None
    too_small = replace(AVAILABLE, memory=found.least.memory - 1)
    message = fit_problems(recipe(), SHAPES, WIDTHS, too_small, least=True)["train"]
    sizes = f"{found.least.memory / 1e6:.3g} MB of memory, and there are {too_small.memory / 1e6:.3g} MB"
    assert message.startswith(f"train needs at least {sizes}. What would fit: crosscoder")


def test_trainings_side_by_side_hold_their_weights_at_once_and_the_process_once():
    one = cost_of_stage("train", recipe())
    both = side_by_side([one, one])

    assert both.memory == pytest.approx(2 * one.memory - estimate.PROCESS_BYTES - one.mapped)
    assert both.least.memory == 2 * one.least.memory and both.disk == 2 * one.disk
    assert side_by_side([one]) == one
    fits_alone = replace(AVAILABLE, memory=(one.memory - one.mapped) * 1.1)
    options = {"stages": ["train"]}
    assert fit_problems(recipe(), SHAPES, WIDTHS, fits_alone, **options) == {}
    assert "train" in fit_problems(recipe(), SHAPES, WIDTHS, fits_alone, **options, beside=[recipe()] * 3)
