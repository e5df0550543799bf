"""The Triton kernels equal their dense definitions; `test_gpu.py` runs this file in its own processes.

With TRITON_INTERPRET=1, which must be set before Triton is imported, the kernels are interpreted on the CPU; without it
they run on a GPU.
"""

import os

import pytest
import torch
from torch import Tensor

from tests.worlds.slow_gradients import slow_gradients
from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.kernels import cpu, gpu, sparse
from trainer.kernels.cpu import WeightBlock
from trainer.kernels.sparse import (
    SparsePattern,
    dense_above,
    entries_above,
    inner_products,
    subtract_decoded,
    sum_by_feature,
    sum_by_row,
)
from trainer.training.encoding import Encoding, budgets, encode_sparse
from trainer.training.gradients import write_gradients
from trainer.training.losses import reconstruction_loss
from trainer.training.trainer import Training

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
LOOPS_USABLE = cpu.usable
ROWS, FEATURES = 9, 6
EXACT = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7}}


@pytest.fixture(autouse=True)
def kernels_in_use(monkeypatch):
    """Force the kernels everywhere, with segments limited so that some are split."""
    monkeypatch.setattr(gpu, "DEVICE", DEVICE)
    monkeypatch.setattr(gpu, "MAX_SEGMENT", 4)
    monkeypatch.setattr(sparse, "_embedding_bag_sum", None)
    monkeypatch.setattr(cpu, "usable", lambda *_: False)
    assert gpu.usable(torch.zeros(1, device=DEVICE))


@pytest.fixture
def dense() -> Tensor:
    """Activations [rows, features]: none in one row and one feature, and a feature active on all other rows."""
    active = torch.rand(ROWS, FEATURES, device=DEVICE) * (torch.rand(ROWS, FEATURES, device=DEVICE) < 0.3)
    active[:, 1] = 1 + torch.arange(ROWS, device=DEVICE)
    active[2], active[:, 3] = 0, 0
    return active


def pattern_of(dense: Tensor) -> SparsePattern:
    row, feature = torch.nonzero(dense, as_tuple=True)
    return SparsePattern(row, feature, rows=len(dense), features=dense.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [7, 576, 640])
def test_sums_and_products_equal_those_of_the_dense_matrix(dense, dtype, width):
    pattern, values = pattern_of(dense), dense[dense > 0]
    vectors = torch.randn(FEATURES, width, device=DEVICE).to(dtype)
    inputs = torch.randn(ROWS, width, device=DEVICE).to(dtype)

    assert pattern.feature_segments.piece_count, "the feature of nearly every row is split"
    near = EXACT[dtype]
    torch.testing.assert_close(sum_by_row(pattern, values, vectors), (dense @ vectors.float()).to(dtype), **near)
    torch.testing.assert_close(sum_by_feature(pattern, values, inputs), (dense.T @ inputs.float()).to(dtype), **near)
    expected = (inputs.double() @ vectors.double().T)[dense > 0].float()
    torch.testing.assert_close(inner_products(pattern, inputs, vectors), expected, rtol=1e-5, atol=1e-4)


def test_decoded_rows_are_subtracted_in_place(dense):
    vectors, out = torch.randn(FEATURES, 7, device=DEVICE), torch.randn(ROWS, 7, device=DEVICE)
    expected = out - 2 * (dense @ vectors)
    term = (pattern_of(dense), dense[dense > 0], vectors, out)

    subtract_decoded([term, term])

    torch.testing.assert_close(out, expected, **EXACT[torch.float32])


def test_one_feature_of_every_row_and_one_row_of_every_feature_are_split():
    for shape in [(23, 1), (1, 23)]:
        dense = torch.rand(shape, device=DEVICE) + 0.1
        vectors, inputs = torch.randn(shape[1], 7, device=DEVICE), torch.randn(shape[0], 7, device=DEVICE)

        near = EXACT[torch.float32]
        torch.testing.assert_close(sum_by_row(pattern_of(dense), dense.flatten(), vectors), dense @ vectors, **near)
        torch.testing.assert_close(sum_by_feature(pattern_of(dense), dense.flatten(), inputs), dense.T @ inputs, **near)


def test_nothing_active_gives_zeros_and_no_error():
    empty, none = pattern_of(torch.zeros(ROWS, FEATURES, device=DEVICE)), torch.zeros(0, device=DEVICE)
    vectors, inputs = torch.ones(FEATURES, 7, device=DEVICE), torch.ones(ROWS, 7, device=DEVICE)

    assert sum_by_row(empty, none, vectors).abs().sum() == 0
    assert sum_by_feature(empty, none, inputs).abs().sum() == 0
    assert inner_products(empty, inputs, vectors).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [1, 63, 200])
def test_entries_of_the_dense_product_above_a_bound_are_found_in_order_and_to_the_bit(dtype, features, monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", 1)
    monkeypatch.setattr(sparse, "LARGE_BLOCK", 1)
    monkeypatch.setattr(sparse, "MIN_ROWS", 4)
    monkeypatch.setattr(gpu, "SEARCH_COLUMNS", 64)
    monkeypatch.setattr(gpu, "ENTRIES_PER_SLOT", 1000)  # so that the first buffer is too small
    inputs, weight = torch.randn(ROWS, 5, device=DEVICE).to(dtype), torch.randn(features, 5, device=DEVICE).to(dtype)
    bias = torch.randn(features, device=DEVICE).to(dtype)
    bound = (torch.rand(features) * (torch.rand(features) < 0.7)).to(DEVICE)

    index, value = dense_above(inputs, weight, bias, bound)

    whole = torch.cat([torch.addmm(bias, part, weight.T) for part in inputs.split(4)])
    above = whole > bound.to(dtype)
    assert index.tolist() == torch.nonzero(above.flatten()).squeeze(1).tolist()
    assert torch.equal(value, whole[above].float())


def test_an_entry_at_its_bound_is_not_above_it_and_neither_is_nan():
    dense = torch.tensor([[0.5, 0.75, float("nan")], [0.75, 0.5, 0.0], [float("inf"), -1.0, 1.0]]).bfloat16().to(DEVICE)

    index, value = entries_above(dense, torch.tensor([0.5, 0.5, 0.0], device=DEVICE))

    assert index.tolist() == [1, 3, 6, 8]
    assert value.tolist() == [0.75, 0.75, float("inf"), 1.0]


def test_nothing_above_the_bound_and_no_rows_give_no_entries():
    dense, bound = torch.zeros(3, 5, device=DEVICE), torch.zeros(5, device=DEVICE)

    assert [len(x) for x in entries_above(dense, bound)] == [0, 0]
    assert [len(x) for x in dense_above(dense[:0], torch.ones(5, 5, device=DEVICE), bound, bound)] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_group_with_a_tied_decoder_equal_the_formulas(dense, dtype):
    pattern, active = pattern_of(dense), dense.double()
    tied, own = (torch.randn(FEATURES, width, device=DEVICE) for width in (7, 20))
    gradients = {width: torch.full((FEATURES, width), float("nan"), device=DEVICE) for width in (7, 20, 5)}
    bias = torch.full((FEATURES,), float("nan"), device=DEVICE)
    errors = [torch.randn(ROWS, width, device=DEVICE).to(dtype) for width in (7, 20, 7)]
    inputs = torch.randn(ROWS, 5, device=DEVICE).to(dtype)
    decoders = [
        WeightBlock(error, factor, weight, gradients[weight.shape[1]])
        for error, factor, weight in zip(errors, (0.5, -2.0, 3.0), (tied, own, tied), strict=True)
    ]

    value = dense[dense > 0][pattern.by_feature]
    gpu.write_gradients(pattern.feature_segments, value, decoders, [WeightBlock(inputs, 0.25, own, gradients[5])], bias)

    pre_gradient = sum(b.factor * b.vectors.double() @ b.weight.double().T for b in decoders) * (dense > 0)
    expected = {
        7: active.T @ (0.5 * errors[0].double() + 3 * errors[2].double()),
        20: active.T @ errors[1].double() * -2,
        5: 0.25 * pre_gradient.T @ inputs.double(),
    }
    assert pattern.feature_segments.piece_count
    for width, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[width].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, pre_gradient.sum(dim=0).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_width", [gpu.MAX_WIDTH, 1])
@pytest.mark.parametrize(
    "crosscoder",
    [{"variant": "dfc"}, {"variant": "standard", "aggregation": "mean"}, {"variant": "designated_shared"}],
)
def test_explicit_gradients_equal_those_of_the_dense_definition_in_fp64(tmp_path, monkeypatch, crosscoder, max_width):
    monkeypatch.setattr(gpu, "MAX_WIDTH", max_width)  # wider vectors do not use the fused gradients
    training, encoding = encoded(tmp_path, crosscoder)
    fitted, rows = training.crosscoder, fixed_rows(training)
    for weight in fitted.weights.values():
        weight.grad = torch.full_like(weight, float("nan"))  # the old values must be overwritten
    addresses = {name: weight.grad.data_ptr() for name, weight in fitted.weights.items()}

    write_gradients(fitted, rows, encoding)

    loss, expected = slow_gradients(fitted, rows, encoding, None, torch.float64)
    torch.testing.assert_close(reconstruction_loss(encoding).double(), loss.detach(), rtol=1e-5, atol=0)
    for name, weight in fitted.weights.items():
        assert weight.grad.data_ptr() == addresses[name]
        assert float(weight.grad.abs().max()) > 0
        torch.testing.assert_close(weight.grad.double(), expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_steps_give_the_weights_of_the_compiled_loops(tmp_path, monkeypatch):
    kernels = weights_after_two_steps(tmp_path / "fused", DEVICE)
    monkeypatch.setattr(gpu, "AVAILABLE", False)
    monkeypatch.setattr(cpu, "usable", LOOPS_USABLE)

    loops = weights_after_two_steps(tmp_path / "compiled", "cpu")

    for name, weight in kernels.items():
        torch.testing.assert_close(weight.cpu(), loops[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.gpu
def test_a_step_on_a_gpu_synchronises_only_in_readbacks(tmp_path):
    training = training_of(tmp_path, {"variant": "dfc"}, "cuda")
    batches = training.remaining_batches()
    for _ in range(2):
        training.run_step(next(batches))

    torch.cuda.set_sync_debug_mode("error")  # waiting for the event of a ScalarReadback is not counted
    try:
        for _ in range(3):
            training.run_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def training_of(folder, crosscoder, device: str) -> Training:
    """A training in fp32 with small batches, because the interpreter is slow."""
    recipe = tiny_recipe(crosscoder=crosscoder, training={"precision": "float32", "batch": 16, "device": device})
    return Training(recipe, tiny_activations(folder / "store", rows=96, held_out=16))


def weights_after_two_steps(folder, device: str) -> dict[str, Tensor]:
    training = training_of(folder, {"variant": "dfc"}, device)
    batches = training.remaining_batches()
    for _ in range(2):
        training.run_step(next(batches))
    return training.crosscoder.weights


def fixed_rows(training: Training) -> dict[str, Tensor]:
    return training.crosscoder.normalise(next(iter(training.remaining_batches())))


def encoded(folder, crosscoder) -> tuple[Training, Encoding]:
    """A training whose weights have left their initial values, and its first batch encoded."""
    training = training_of(folder, crosscoder, DEVICE)
    fitted, sparsity = training.crosscoder, training.recipe.crosscoder.sparsity
    for weight in fitted.weights.values():
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    rows = fixed_rows(training)
    keep = budgets(fitted, sparsity, 3 * len(rows["left"]))
    return training, encode_sparse(fitted, rows, sparsity, keep, training.guess, training.encoder)
