"""The fast products against their slow definitions, gradients included."""

import pytest
import torch
from torch import Tensor

from trainer.kernels import Pattern, decode_active, encode_active, products, sum_by_feature, sum_by_row

ROWS, FEATURES, WIDTH = 7, 11, 5


@pytest.fixture
def dense() -> Tensor:
    """Activations [rows, features] of which some rows and some features have none."""
    active = torch.rand(ROWS, FEATURES, dtype=torch.float64) * (torch.rand(ROWS, FEATURES) < 0.4)
    active[2], active[:, 3] = 0, 0
    return active


def pattern_of(dense: Tensor) -> Pattern:
    row, feature = torch.nonzero(dense, as_tuple=True)
    return Pattern(row, feature, rows=ROWS, features=FEATURES)


def values_of(dense: Tensor) -> Tensor:
    return dense[torch.nonzero(dense, as_tuple=True)]


def test_sums_by_row_and_by_feature_equal_the_dense_products(dense):
    vectors, inputs = torch.randn(FEATURES, WIDTH).double(), torch.randn(ROWS, WIDTH).double()

    torch.testing.assert_close(sum_by_row(pattern_of(dense), values_of(dense), vectors), dense @ vectors)
    torch.testing.assert_close(sum_by_feature(pattern_of(dense), values_of(dense), inputs), dense.T @ inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_at_active_pairs_equal_the_dense_product_there(dense, dtype):
    left, right = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(FEATURES, WIDTH, dtype=dtype)

    torch.testing.assert_close(products(pattern_of(dense), left, right), (left @ right.T)[dense > 0])


def test_nothing_active_gives_zeros_and_no_error():
    nothing = pattern_of(torch.zeros(ROWS, FEATURES))
    none = torch.zeros(0)

    assert sum_by_row(nothing, none, torch.ones(FEATURES, WIDTH)).abs().sum() == 0
    assert sum_by_feature(nothing, none, torch.ones(ROWS, WIDTH)).shape == (FEATURES, WIDTH)
    assert products(nothing, torch.ones(ROWS, WIDTH), torch.ones(FEATURES, WIDTH)).shape == (0,)


def test_gradients_of_an_encoded_and_decoded_batch_equal_those_of_the_dense_definition(dense):
    pattern, mask = pattern_of(dense), dense > 0
    inputs = [torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.randn(ROWS, WIDTH + 2, dtype=torch.float64)]
    encoders = [torch.randn(FEATURES, x.shape[1], dtype=torch.float64, requires_grad=True) for x in inputs]
    bias = torch.randn(FEATURES, dtype=torch.float64, requires_grad=True)
    decoder = torch.randn(FEATURES, WIDTH, dtype=torch.float64, requires_grad=True)
    target = torch.randn(ROWS, WIDTH, dtype=torch.float64)

    everywhere = sum(x @ w.T for x, w in zip(inputs, encoders, strict=True)) + bias
    slow = ((everywhere * mask) @ decoder - target).square().sum()
    expected = torch.autograd.grad(slow, [*encoders, bias, decoder])

    value = encode_active(everywhere.detach()[mask], pattern, bias, inputs, encoders)
    fast = (decode_active(pattern, value, decoder) - target).square().sum()

    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, [*encoders, bias, decoder]), expected)


def test_bfloat16_sums_stay_within_its_rounding_of_the_exact_ones(dense):
    vectors = torch.randn(FEATURES, WIDTH)
    exact = dense @ vectors.double()

    rounded = sum_by_row(pattern_of(dense), values_of(dense).float(), vectors.bfloat16())

    # Inputs and the result are rounded to 8 bits; sums are kept in fp32.
    assert float((rounded.double() - exact).abs().max()) < 4 * 2**-8 * float(exact.abs().max())
