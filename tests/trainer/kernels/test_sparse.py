"""The fast products against their slow definitions, gradients included."""

import pytest
import torch
from torch import Tensor

from trainer.kernels import cpu, sparse
from trainer.kernels.sparse import SparsePattern, dense_above, products, sum_by_feature, sum_by_row

ROWS, FEATURES, WIDTH = 7, 11, 5


@pytest.fixture
def dense() -> Tensor:
    """Activations [rows, features] of which some rows and some features have none."""
    active = torch.rand(ROWS, FEATURES, dtype=torch.float64) * (torch.rand(ROWS, FEATURES) < 0.4)
    active[2], active[:, 3] = 0, 0
    return active


def pattern_of(dense: Tensor) -> SparsePattern:
    row, feature = torch.nonzero(dense, as_tuple=True)
    return SparsePattern(row, feature, rows=ROWS, features=FEATURES)


def values_of(dense: Tensor) -> Tensor:
    return dense[torch.nonzero(dense, as_tuple=True)]


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch) -> str:
    """The compiled loops, if need be with two threads, or torch alone."""
    monkeypatch.setattr(cpu, "AVAILABLE", request.param == "compiled")
    monkeypatch.setattr(cpu, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(sparse, "SHARED_BY", 0)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_by_row_and_by_feature_equal_the_dense_products(dense, dtype, way):
    dense = dense.to(dtype)
    vectors, inputs = torch.randn(FEATURES, WIDTH, dtype=dtype), torch.randn(ROWS, WIDTH, dtype=dtype)

    torch.testing.assert_close(sum_by_row(pattern_of(dense), values_of(dense), vectors), dense @ vectors)
    torch.testing.assert_close(sum_by_feature(pattern_of(dense), values_of(dense), inputs), dense.T @ inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_at_active_pairs_equal_the_dense_product_there(dense, dtype, way):
    left, right = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(FEATURES, WIDTH, dtype=dtype)

    torch.testing.assert_close(products(pattern_of(dense), left, right), (left @ right.T)[dense > 0])


def test_nothing_active_gives_zeros_and_no_error(way):
    nothing = pattern_of(torch.zeros(ROWS, FEATURES))
    none = torch.zeros(0)

    assert sum_by_row(nothing, none, torch.ones(FEATURES, WIDTH)).abs().sum() == 0
    assert sum_by_feature(nothing, none, torch.ones(ROWS, WIDTH)).shape == (FEATURES, WIDTH)
    assert products(nothing, torch.ones(ROWS, WIDTH), torch.ones(FEATURES, WIDTH)).shape == (0,)


def test_bfloat16_sums_stay_within_its_rounding_of_the_exact_ones(dense):
    vectors = torch.randn(FEATURES, WIDTH)
    exact = dense @ vectors.double()

    rounded = sum_by_row(pattern_of(dense), values_of(dense).float(), vectors.bfloat16())

    # Inputs and the result are rounded to 8 bits; sums are kept in fp32.
    assert float((rounded.double() - exact).abs().max()) < 4 * 2**-8 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [1, 63, 64, 200])
def test_what_the_dense_product_has_above_a_bound_is_found_in_order_and_to_the_bit(dtype, features, way, monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", 1)
    monkeypatch.setattr(sparse, "LEAST_ROWS", 3)
    inputs, weight = torch.randn(ROWS, WIDTH).to(dtype), torch.randn(features, WIDTH).to(dtype)
    bias, bound = torch.randn(features).to(dtype), torch.rand(features) * (torch.rand(features) < 0.7)

    place, value = dense_above(inputs, weight, bias, bound)

    blocks = [torch.nn.functional.linear(part, weight, bias) for part in inputs.split(3)]
    whole = torch.cat(blocks)
    row, feature = torch.nonzero(whole > bound.to(dtype), as_tuple=True)
    assert place.tolist() == (row * features + feature).tolist()
    assert torch.equal(value, whole[row, feature].float())
