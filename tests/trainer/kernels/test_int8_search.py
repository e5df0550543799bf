"""Entries found by way of eight bits against the dense product, and what the margin rests on."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder, initial
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.kernels import cpu, int8_search, numba_loops
from trainer.kernels.int8_search import Screen, Shape
from trainer.recipe.fitting import SparsityRecipe
from trainer.training.encoding import Encoders, budgets, encode_sparse

pytestmark = pytest.mark.skipif(
    int8_search.shape() is None, reason="this processor has no product of bytes to screen with"
)


@pytest.fixture(params=[Shape(16, 12), Shape(8, 6)], ids=["512 bits", "256 bits"])
def shape(request, monkeypatch) -> Shape:
    """Both ways a processor may multiply bytes, as far as this one can; two threads where there is work."""
    if request.param.lanes > int8_search.possible().lanes:
        pytest.skip("this processor has no registers of 512 bits")
    monkeypatch.setattr(int8_search, "shape", lambda: request.param)
    monkeypatch.setattr(int8_search, "WORTH", 0)
    monkeypatch.setattr(cpu, "WORTH_A_THREAD", 1)
    return request.param


def drawn(rows: int, features: int, widths: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    weights = [torch.randn(features, width) / width**0.5 for width in widths]
    return [torch.randn(rows, width) for width in widths], weights, torch.randn(features) * 0.1


def definition(rows: list[Tensor], weights: list[Tensor], bias: Tensor, factor: float = 1.0) -> Tensor:
    return factor * sum(x.double() @ w.double().T for x, w in zip(rows, weights, strict=True)) + bias


def assert_finds(screen: Screen, exact: Tensor, bound: Tensor) -> None:
    """In order, with their values, and no others but those that rounding to fp32 puts on the other side."""
    flat, value = screen.above(bound)

    assert torch.equal(flat, flat.sort().values)
    torch.testing.assert_close(value.double(), exact.reshape(-1)[flat], rtol=1e-5, atol=1e-5)
    found = torch.zeros(exact.numel(), dtype=torch.bool).index_fill_(0, flat, True).view_as(exact)
    assert not (found != (exact > bound))[(exact - bound).abs() > 1e-5].any()


@pytest.mark.parametrize("widths", [(5,), (64, 33), (7, 128, 50)])
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (6, 16), (12, 32), (13, 33), (100, 257)])
def test_what_is_found_is_what_the_dense_product_has_above_the_bound(shape, rows, features, widths):
    parts = drawn(rows, features, widths)
    exact = definition(*parts)
    bound = 0.2 + torch.rand(features) + exact.quantile(0.97).relu()

    assert_finds(Screen(*parts), exact, bound)


def test_a_mean_over_sources_and_a_bias_count(shape):
    rows, weights, bias = drawn(50, 40, (30, 20))
    exact = definition(rows, weights, bias, 0.5)

    assert_finds(Screen(rows, weights, bias, factor=0.5), exact, exact.amax(dim=0).clamp_min(0.1) * 0.9)


def test_no_entry_just_above_its_bound_is_missed(shape):
    rows, weights, bias = drawn(200, 3000, (96, 80))
    rows[0][:, 3] *= 40  # a few coordinates of language models are far larger than all others
    exact = definition(rows, weights, bias)
    best = exact.max(dim=0)

    flat, _ = Screen(rows, weights, bias).above((best.values - 1e-4).float().clamp_min(1e-3))

    wanted = (best.indices * 3000 + torch.arange(3000))[best.values > 2e-3]
    assert set(wanted.tolist()) <= set(flat.tolist())


@pytest.mark.parametrize("bound", [0.0, 1e-3])
def test_where_much_is_above_the_bound_everything_is_computed(shape, bound, monkeypatch):
    parts = drawn(40, 70, (30,))
    dense = []
    monkeypatch.setattr(
        int8_search, "dense_above", lambda *args, way=int8_search.dense_above: dense.append(1) or way(*args)
    )

    assert_finds(Screen(*parts), definition(*parts), torch.full((70,), bound))
    assert dense == [1]


def test_vectors_of_zeros_are_never_active_and_harm_nobody(shape):
    rows, weights, bias = drawn(30, 50, (20,))
    rows[0][3], weights[0][7], bias[:] = 0, 0, 0
    exact = definition(rows, weights, bias)

    assert_finds(Screen(rows, weights, bias), exact, torch.full((50,), float(exact.quantile(0.98))))


def test_the_memory_of_an_earlier_screen_is_written_again(shape):
    rows, weights, bias = drawn(30, 50, (20,))
    old = Screen(rows, weights, bias)
    rows, weights, bias = drawn(30, 50, (20,))
    exact = definition(rows, weights, bias)

    screen = Screen(rows, weights, bias, instead_of=old)

    assert screen.weights.packed.data_ptr() == old.weights.packed.data_ptr()
    assert_finds(screen, exact, torch.full((50,), float(exact.quantile(0.98))))


def levels_of(factor: int8_search.Factor, width: int, sign: int = 0) -> Tensor:
    """Levels [vectors, width] of packed vectors."""
    blocks, depth, block = factor.packed.shape
    plain = factor.packed.bitwise_xor(sign).contiguous().view(torch.int8).view(blocks, depth, block, 4)
    return plain.permute(0, 2, 1, 3).reshape(blocks * block, depth * 4)[: len(factor.step), :width]


def test_levels_are_whole_numbers_beside_the_exact_value_and_right_on_average(shape):
    same = torch.randn(1, 60).expand(8191, 60).contiguous()
    factor = int8_search._packed([same], torch.ones(60), 12)

    levels, exact = levels_of(factor, 60).double(), (same / factor.step[:, None]).double()

    assert float((levels - exact).abs().max()) < 1 + 1e-4
    # The mean of n numbers that vary by at most a half is within five of its standard deviations.
    assert float((levels - exact).mean(dim=0).abs().max()) < 5 * 0.5 / 8191**0.5
    assert torch.equal(factor.total.long(), levels.sum(dim=1).long())
    torch.testing.assert_close(
        factor.squares, exact.abs().sub(1e-4).ceil().square().sum(dim=1).float(), rtol=0.02, atol=0
    )


def test_errors_of_sums_of_levels_are_far_smaller_than_the_margin_and_have_no_bias(shape):
    rows, weights, bias = drawn(400, 900, (128, 100))
    screen = Screen(rows, weights, bias)
    left, right = levels_of(screen.rows, 228), levels_of(screen.weights, 228, int8_search.UNSIGNED)

    error = (left.double() @ right.double().T) * screen.rows.step[:, None] * screen.weights.step + bias
    error = (error - definition(rows, weights, bias)) / (screen.rows.step[:, None] * screen.weights.step)
    margin = int8_search.MARGIN * (screen.rows.squares[:, None] + screen.weights.squares).sqrt()

    assert 0.3 < float((error.abs() / margin).max()) < 1
    assert abs(float((error / margin).mean())) < 0.01


def test_without_a_margin_the_hits_are_the_sums_of_levels_above_the_bound(shape, monkeypatch):
    rows, weights, bias = drawn(50, 70, (128, 100))
    rows[0] += 0.5  # so that sums of levels are far from zero
    screen = Screen(rows, weights, bias)
    left, right = levels_of(screen.rows, 228), levels_of(screen.weights, 228, int8_search.UNSIGNED)
    bound = torch.rand(70) + 0.5
    monkeypatch.setattr(int8_search, "MARGIN", 0.0)

    bits = screen._hits(bound).T.unsqueeze(2).bitwise_right_shift(torch.arange(shape.columns, dtype=torch.int32)) & 1

    sums = left.double() @ right.double().T
    least = (bound - bias).double() / (screen.rows.step[:, None].double() * screen.weights.step)
    hits = bits.reshape(50, -1)[:, :70].bool()
    assert not (hits != (sums > least))[(sums - least).abs() > 1].any()
    assert 0.1 < float(hits.float().mean()) < 0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_possible_sums_fit(shape, sign):
    width = int8_search.DEEPEST
    rows, weights = [torch.full((2, width), float(sign))], [torch.ones(3, width)]
    exact = torch.full((2, 3), float(sign * width), dtype=torch.float64)

    flat, value = Screen(rows, weights, torch.zeros(3)).above(torch.tensor([1.0, width / 2, 2.0 * width]))

    assert flat.tolist() == ([0, 1, 3, 4] if sign > 0 else [])
    assert value.tolist() == [float(exact[0, 0])] * len(flat)


def test_hits_are_listed_by_column_and_then_by_row():
    words = np.array([[9, 9, 9, 9], [0b101, 0, 0b110, 0b001]], np.uint32)
    begin, row = np.zeros(4, np.int64), np.zeros(5, np.int64)

    assert numba_loops.list_hits(1, 2, words, 3, begin, row) == 5
    assert (begin.tolist(), row.tolist()) == ([0, 2, 3, 5], [0, 3, 2, 0, 2])
    assert numba_loops.list_hits(1, 2, words, 3, begin, row[:4]) == 5, "more than there is room for"


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx512vnni", "avx512vl", "fma"}, Shape(16, 12)),
        ({"avxvnni", "fma"}, Shape(8, 6)),
        ({"avx2", "fma"}, None),
        ({"avx512vnni", "avx512vl", "amx-bf16"}, None),
    ],
)
def test_the_processor_decides(has, expected, monkeypatch):
    import llvmlite.binding

    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: dict.fromkeys(has, True))

    assert int8_search.shape.__wrapped__() == expected


def test_a_processor_that_nobody_knows_screens_nothing(monkeypatch):
    import llvmlite.binding

    def unknown():
        raise RuntimeError

    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", unknown)

    assert int8_search.shape.__wrapped__() is None


def test_without_numba_or_for_another_processor_than_this_nothing_is_screened(monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "CPU_NAME", "generic")
    assert int8_search.shape.__wrapped__() is None
    monkeypatch.setattr(numba.config, "CPU_NAME", None)
    monkeypatch.setattr(cpu, "AVAILABLE", False)
    assert int8_search.shape.__wrapped__() is None


def test_where_much_of_a_batch_is_kept_nothing_is_screened(shape, crosscoder, screened):
    rows = {"a": torch.randn(64, 24), "b": torch.randn(64, 33)}
    search = Encoders(crosscoder, torch.float32, screened=True).search

    search(
        crosscoder.groups, rows, lambda group: torch.cat([rows[s] for s in group.reads], dim=1), 1.1 * int8_search.MOST
    )

    assert screened == []


def test_small_dictionaries_and_other_dtypes_are_not_screened(monkeypatch):
    monkeypatch.setattr(int8_search, "shape", int8_search.possible)
    big, small = torch.zeros(1024, 1024), torch.zeros(1024, 1023)

    assert int8_search.usable([torch.zeros(1, 1024)], [big])
    assert not int8_search.usable([torch.zeros(1, 1023)], [small])
    assert not int8_search.usable([torch.zeros(1, 1024).bfloat16()], [big.bfloat16()])


@pytest.fixture
def crosscoder() -> Crosscoder:
    widths = {"a": 24, "b": 33}
    groups = (Group("shared", 90, 0, ("a", "b"), ("a", "b")), Group("only_a", 60, 90, ("a",), ("a",)))
    weights = initial(widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(0))
    normaliser = {name: Normaliser(torch.zeros(width), 1.0) for name, width in widths.items()}
    threshold = {"shared": torch.tensor(2.5), "only_a": torch.tensor(2.5)}
    return Crosscoder(widths, groups, weights, normaliser, threshold)


@pytest.fixture
def screened(monkeypatch) -> list[int]:
    """How many features every screen that was made has."""
    made: list[int] = []
    begin = Screen.__init__
    monkeypatch.setattr(
        Screen, "__init__", lambda self, *args, **kw: made.append(len(args[2])) or begin(self, *args, **kw)
    )
    return made


@pytest.mark.parametrize("budget", ["joint", "per_group"])
def test_a_batch_is_encoded_as_by_the_product_in_fp32(shape, crosscoder, budget, screened):
    rows = {"a": torch.randn(64, 24), "b": torch.randn(64, 33)}
    recipe = SparsityRecipe(kind="batch_topk", k=2, budget=budget)
    keep = budgets(crosscoder, recipe, 2 * 64)
    guess = {"shared": 3.0, "only_a": 3.0}

    ours, slow = (
        encode_sparse(crosscoder, rows, recipe, keep, guess, Encoders(crosscoder, torch.float32, screened=fast))
        for fast in (True, False)
    )

    assert screened == [90, 60]
    for name, codes in slow.codes.items():
        assert torch.equal(ours.codes[name].pattern.row, codes.pattern.row)
        assert torch.equal(ours.codes[name].pattern.feature, codes.pattern.feature)
        torch.testing.assert_close(ours.codes[name].value, codes.value)
    assert ours.smallest == pytest.approx(slow.smallest)


def test_inference_is_the_definition_to_rounding(shape, crosscoder, screened):
    rows = {"a": torch.randn(64, 24), "b": torch.randn(64, 33)}

    ours, slow = crosscoder.encode(rows), crosscoder.encode(rows, compute=torch.float32)

    assert screened == [90, 60]
    assert len(slow.row) > 20
    assert torch.equal(ours.row, slow.row)
    assert torch.equal(ours.feature, slow.feature)
    torch.testing.assert_close(ours.value, slow.value)
