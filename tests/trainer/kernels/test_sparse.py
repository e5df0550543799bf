"""Sparse products equal their dense definitions."""

import pytest
import torch
from torch import Tensor

from trainer.kernels import cpu, sparse
from trainer.kernels.sparse import SparsePattern, dense_above, inner_products, sum_by_feature, sum_by_row

ROWS, FEATURES, WIDTH = 7, 11, 5


@pytest.fixture
def dense() -> Tensor:
    """Activations [rows, features]; a row and a feature have none."""
    active = torch.rand(ROWS, FEATURES, dtype=torch.float64) * (torch.rand(ROWS, FEATURES) < 0.4)
    active[2], active[:, 3] = 0, 0
    return active


def pattern_of(dense: Tensor) -> SparsePattern:
    row, feature = torch.nonzero(dense, as_tuple=True)
    return SparsePattern(row, feature, rows=ROWS, features=FEATURES)


def values_of(dense: Tensor) -> Tensor:
    return dense[torch.nonzero(dense, as_tuple=True)]


@pytest.fixture(params=["compiled", "torch"])
def backend(request, monkeypatch) -> str:
    """Use the compiled loops, with several threads, or torch alone."""
    monkeypatch.setattr(cpu, "available", lambda: request.param == "compiled")
    monkeypatch.setattr(cpu, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(sparse, "MIN_ROWS_PER_VECTOR", 0)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_by_row_and_by_feature_equal_the_dense_products(dense, dtype, backend):
    dense = dense.to(dtype)
    vectors, inputs = torch.randn(FEATURES, WIDTH, dtype=dtype), torch.randn(ROWS, WIDTH, dtype=dtype)

    torch.testing.assert_close(sum_by_row(pattern_of(dense), values_of(dense), vectors), dense @ vectors)
    torch.testing.assert_close(sum_by_feature(pattern_of(dense), values_of(dense), inputs), dense.T @ inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_at_active_pairs_equal_the_dense_product_there(dense, dtype, backend):
    left, right = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(FEATURES, WIDTH, dtype=dtype)

    torch.testing.assert_close(inner_products(pattern_of(dense), left, right), (left @ right.T)[dense > 0])


def test_nothing_active_gives_zeros_and_no_error(backend):
    empty = pattern_of(torch.zeros(ROWS, FEATURES))
    none = torch.zeros(0)

    assert sum_by_row(empty, none, torch.ones(FEATURES, WIDTH)).abs().sum() == 0
    assert sum_by_feature(empty, none, torch.ones(ROWS, WIDTH)).shape == (FEATURES, WIDTH)
    assert inner_products(empty, torch.ones(ROWS, WIDTH), torch.ones(FEATURES, WIDTH)).shape == (0,)


def test_bfloat16_sums_stay_within_its_rounding_of_the_exact_ones(dense):
    vectors = torch.randn(FEATURES, WIDTH)
    exact = dense @ vectors.double()

    rounded = sum_by_row(pattern_of(dense), values_of(dense).float(), vectors.bfloat16())

    # Inputs and the result are rounded to 8 bits; sums are kept in fp32.
    assert float((rounded.double() - exact).abs().max()) < 4 * 2**-8 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [1, 63, 64, 200])
def test_entries_of_the_dense_product_above_a_bound_are_found_in_order_and_to_the_bit(
    dtype, features, backend, monkeypatch
):
    monkeypatch.setattr(sparse, "BLOCK", 1)
    monkeypatch.setattr(sparse, "MIN_ROWS", 3)
    inputs, weight = torch.randn(ROWS, WIDTH).to(dtype), torch.randn(features, WIDTH).to(dtype)
    bias, bound = torch.randn(features).to(dtype), torch.rand(features) * (torch.rand(features) < 0.7)

    index, value = dense_above(inputs, weight, bias, bound)

    blocks = [torch.nn.functional.linear(part, weight, bias) for part in inputs.split(3)]
    whole = torch.cat(blocks)
    row, feature = torch.nonzero(whole > bound.to(dtype), as_tuple=True)
    assert index.tolist() == (row * features + feature).tolist()
    assert torch.equal(value, whole[row, feature].float())


@pytest.mark.parametrize("error", [ImportError("Numba needs NumPy 2.4 or less"), OSError("libLLVM is missing")])
def test_a_numba_that_cannot_be_imported_counts_as_missing(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(cpu, "import_module", fail)
    assert cpu.available.__wrapped__() is False
