"""Int8 search against the dense product, what its margin rests on, and training and inference with and without it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import Normaliser
from trainer.kernels import cpu, int8_search, numba_loops
from trainer.kernels.int8_search import Int8Search, TileShape
from trainer.recipe.fitting import SparsityRecipe
from trainer.training.encoding import BatchEncoder, Encoding, budgets, encode_sparse


@pytest.fixture(params=[TileShape(16, 12), TileShape(8, 6)], ids=["512 bits", "256 bits"])
def tile(request, monkeypatch) -> TileShape:
    """Each register width of this processor, whether or not int8 search is used on it; two threads."""
    widest = int8_search.processor_tile()
    if widest is None or request.param.lanes > widest.lanes:
        pytest.skip(f"this processor does not multiply bytes (VNNI) in registers of {32 * request.param.lanes} bits")
    monkeypatch.setattr(cpu, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return request.param


@pytest.fixture
def used(tile, monkeypatch) -> TileShape:
    """Training and inference use int8 search, however small the dictionary."""
    monkeypatch.setattr(int8_search, "preferred_tile", lambda: tile)
    monkeypatch.setattr(int8_search, "MIN_WEIGHTS", 0)
    return tile


def drawn(rows: int, features: int, widths: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    weights = [torch.randn(features, width) / width**0.5 for width in widths]
    return [torch.randn(rows, width) for width in widths], weights, torch.randn(features) * 0.1


def definition(rows: list[Tensor], weights: list[Tensor], bias: Tensor, factor: float = 1.0) -> Tensor:
    return factor * sum(x.double() @ w.double().T for x, w in zip(rows, weights, strict=True)) + bias


def assert_finds(search: Int8Search, exact: Tensor, bound: Tensor) -> None:
    """In order, with their values, and no others but those that rounding to fp32 puts on the other side."""
    flat, value = search.above(bound)

    assert torch.equal(flat, flat.sort().values)
    torch.testing.assert_close(value.double(), exact.reshape(-1)[flat], rtol=1e-5, atol=1e-5)
    found = torch.zeros(exact.numel(), dtype=torch.bool).index_fill_(0, flat, True).view_as(exact)
    assert not (found != (exact > bound))[(exact - bound).abs() > 1e-5].any()


@pytest.mark.parametrize("widths", [(5,), (64, 33), (7, 128, 50)])
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (6, 16), (12, 32), (13, 33), (100, 257)])
def test_it_finds_the_entries_of_the_dense_product_above_the_bound(tile, rows, features, widths):
    parts = drawn(rows, features, widths)
    exact = definition(*parts)
    bound = 0.2 + torch.rand(features) + exact.quantile(0.97).relu()

    assert_finds(Int8Search(*parts, tile=tile), exact, bound)


def test_the_mean_over_sources_and_the_bias_are_included(tile):
    rows, weights, bias = drawn(50, 40, (30, 20))
    exact = definition(rows, weights, bias, 0.5)

    assert_finds(Int8Search(rows, weights, bias, factor=0.5, tile=tile), exact, exact.amax(dim=0).clamp_min(0.1) * 0.9)


def test_no_entry_just_above_its_bound_is_missed(tile):
    rows, weights, bias = drawn(200, 3000, (96, 80))
    rows[0][:, 3] *= 40  # a few coordinates of language models are far larger than all others
    exact = definition(rows, weights, bias)
    best = exact.max(dim=0)

    flat, _ = Int8Search(rows, weights, bias, tile=tile).above((best.values - 1e-4).float().clamp_min(1e-3))

    wanted = (best.indices * 3000 + torch.arange(3000))[best.values > 2e-3]
    assert set(wanted.tolist()) <= set(flat.tolist())


@pytest.mark.parametrize("bound", [0.0, 1e-3])
def test_with_too_many_candidates_the_dense_product_is_computed(tile, bound, monkeypatch):
    parts = drawn(40, 70, (30,))
    calls, dense_above = [], int8_search.dense_above
    monkeypatch.setattr(int8_search, "dense_above", lambda *args: calls.append(1) or dense_above(*args))

    assert_finds(Int8Search(*parts, tile=tile), definition(*parts), torch.full((70,), bound))
    assert calls == [1]


def test_zero_vectors_are_never_active_and_leave_the_others_alone(tile):
    rows, weights, bias = drawn(30, 50, (20,))
    rows[0][3], weights[0][7], bias[:] = 0, 0, 0
    exact = definition(rows, weights, bias)

    assert_finds(Int8Search(rows, weights, bias, tile=tile), exact, torch.full((50,), float(exact.quantile(0.98))))


def test_the_memory_of_an_earlier_search_is_overwritten(tile):
    rows, weights, bias = drawn(30, 50, (20,))
    old = Int8Search(rows, weights, bias, tile=tile)
    rows, weights, bias = drawn(30, 50, (20,))
    exact = definition(rows, weights, bias)

    search = Int8Search(rows, weights, bias, reuse=old, tile=tile)

    assert search.weights.packed.data_ptr() == old.weights.packed.data_ptr()
    assert_finds(search, exact, torch.full((50,), float(exact.quantile(0.98))))


def levels_of(vectors: int8_search.QuantisedVectors, width: int, flip: int = 0) -> Tensor:
    """Levels [vectors, width], unpacked."""
    blocks, depth, block = vectors.packed.shape
    levels = vectors.packed.bitwise_xor(flip).contiguous().view(torch.int8).view(blocks, depth, block, 4)
    return levels.permute(0, 2, 1, 3).reshape(blocks * block, depth * 4)[: len(vectors.step), :width]


def test_levels_are_the_integers_next_to_the_exact_value_and_right_on_average():
    same = torch.randn(1, 60).expand(8191, 60).contiguous()
    vectors = int8_search._quantised([same], torch.ones(60), 12)

    levels, exact = levels_of(vectors, 60).double(), (same / vectors.step[:, None]).double()

    assert float((levels - exact).abs().max()) < 1 + 1e-4
    # The mean of n numbers that vary by at most a half is within five of its standard deviations.
    assert float((levels - exact).mean(dim=0).abs().max()) < 5 * 0.5 / 8191**0.5
    assert torch.equal(vectors.level_sum.long(), levels.sum(dim=1).long())
    torch.testing.assert_close(
        vectors.square_sum, exact.abs().sub(1e-4).ceil().square().sum(dim=1).float(), rtol=0.02, atol=0
    )


def test_quantisation_errors_of_sums_are_well_below_the_margin_and_unbiased(tile):
    rows, weights, bias = drawn(400, 900, (128, 100))
    search = Int8Search(rows, weights, bias, tile=tile)
    left, right = levels_of(search.rows, 228), levels_of(search.weights, 228, int8_search.SIGN_FLIP)

    error = (left.double() @ right.double().T) * search.rows.step[:, None] * search.weights.step + bias
    error = (error - definition(rows, weights, bias)) / (search.rows.step[:, None] * search.weights.step)
    margin = int8_search.MARGIN * (search.rows.square_sum[:, None] + search.weights.square_sum).sqrt()

    assert 0.3 < float((error.abs() / margin).max()) < 1
    assert abs(float((error / margin).mean())) < 0.01


def test_without_a_margin_the_candidates_are_the_sums_of_levels_above_the_bound(tile, monkeypatch):
    rows, weights, bias = drawn(50, 70, (128, 100))
    rows[0] += 0.5  # so that sums of levels are far from zero
    search = Int8Search(rows, weights, bias, tile=tile)
    left, right = levels_of(search.rows, 228), levels_of(search.weights, 228, int8_search.SIGN_FLIP)
    bound = torch.rand(70) + 0.5
    monkeypatch.setattr(int8_search, "MARGIN", 0.0)

    column = torch.arange(tile.columns, dtype=torch.int32)
    bits = search._candidates(bound).T.unsqueeze(2).bitwise_right_shift(column) & 1

    sums = left.double() @ right.double().T
    least = (bound - bias).double() / (search.rows.step[:, None].double() * search.weights.step)
    candidates = bits.reshape(50, -1)[:, :70].bool()
    assert not (candidates != (sums > least))[(sums - least).abs() > 1].any()
    assert 0.1 < float(candidates.float().mean()) < 0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_possible_sums_fit(tile, sign):
    width = int8_search.MAX_WIDTH
    rows, weights = [torch.full((2, width), float(sign))], [torch.ones(3, width)]
    exact = torch.full((2, 3), float(sign * width), dtype=torch.float64)

    search = Int8Search(rows, weights, torch.zeros(3), tile=tile)
    flat, value = search.above(torch.tensor([1.0, width / 2, 2.0 * width]))

    assert flat.tolist() == ([0, 1, 3, 4] if sign > 0 else [])
    assert value.tolist() == [float(exact[0, 0])] * len(flat)


def test_candidates_are_listed_by_column_and_then_by_row():
    words = np.array([[9, 9, 9, 9], [0b101, 0, 0b110, 0b001]], np.uint32)
    begin, row = np.zeros(4, np.int64), np.zeros(5, np.int64)

    assert numba_loops.list_candidates(1, 2, words, 3, begin, row) == 5
    assert (begin.tolist(), row.tolist()) == ([0, 2, 3, 5], [0, 3, 2, 0, 2])
    assert numba_loops.list_candidates(1, 2, words, 3, begin, row[:4]) == 5, "candidates beyond the room are counted"


@pytest.fixture
def crosscoder() -> Crosscoder:
    widths = {"a": 24, "b": 33}
    groups = (Group("shared", 90, 0, ("a", "b"), ("a", "b")), Group("only_a", 60, 90, ("a",), ("a",)))
    weights = initial_weights(widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(0))
    normaliser = {name: Normaliser(torch.zeros(width), 1.0) for name, width in widths.items()}
    threshold = {"shared": torch.tensor(2.5), "only_a": torch.tensor(2.5)}
    return Crosscoder(widths, groups, weights, normaliser, threshold)


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """Number of features in every int8 search that was prepared."""
    features: list[int] = []
    prepare = Int8Search.__init__
    monkeypatch.setattr(
        Int8Search, "__init__", lambda self, *args, **kw: features.append(len(args[2])) or prepare(self, *args, **kw)
    )
    return features


@pytest.fixture
def rows() -> dict[str, Tensor]:
    return {"a": torch.randn(64, 24), "b": torch.randn(64, 33)}


def encoded(crosscoder: Crosscoder, rows: dict[str, Tensor], budget: str, *, use_int8: bool) -> Encoding:
    recipe = SparsityRecipe(kind="batch_topk", k=2, budget=budget)
    encoders = BatchEncoder(crosscoder, torch.float32, use_int8=use_int8)
    guess = {"shared": 3.0, "only_a": 3.0}
    return encode_sparse(crosscoder, rows, recipe, budgets(crosscoder, recipe, 2 * 64), guess, encoders)


@pytest.mark.parametrize("budget", ["joint", "per_group"])
def test_a_training_batch_is_encoded_as_by_the_product_in_fp32(used, crosscoder, rows, budget, searched):
    ours, slow = (encoded(crosscoder, rows, budget, use_int8=use_int8) for use_int8 in (True, False))

    assert searched == [90, 60]
    for name, codes in slow.codes.items():
        assert torch.equal(ours.codes[name].pattern.row, codes.pattern.row)
        assert torch.equal(ours.codes[name].pattern.feature, codes.pattern.feature)
        torch.testing.assert_close(ours.codes[name].value, codes.value)
    assert ours.smallest == pytest.approx(slow.smallest)


def test_inference_is_the_definition_to_rounding(used, crosscoder, rows, searched):
    ours, slow = crosscoder.encode(rows), crosscoder.encode(rows, compute=torch.float32)

    assert searched == [90, 60]
    assert len(slow.row) > 20
    assert torch.equal(ours.row, slow.row)
    assert torch.equal(ours.feature, slow.feature)
    torch.testing.assert_close(ours.value, slow.value)


def test_a_batch_of_which_much_is_kept_is_not_searched(used, crosscoder, rows, searched):
    search = BatchEncoder(crosscoder, torch.float32, use_int8=True).search
    share = 1.1 * int8_search.MAX_KEPT_SHARE

    search(crosscoder.groups, rows, lambda group: torch.cat([rows[s] for s in group.reads], dim=1), share)

    assert searched == []


def test_without_a_working_kernel_training_and_inference_are_those_of_torch(crosscoder, rows, searched, monkeypatch):
    monkeypatch.setattr(int8_search, "preferred_tile", lambda: TileShape(16, 12))
    monkeypatch.setattr(int8_search, "search_kernel", lambda _: None)
    monkeypatch.setattr(int8_search, "MIN_WEIGHTS", 0)

    ours, slow = (encoded(crosscoder, rows, "joint", use_int8=use_int8) for use_int8 in (True, False))
    codes, dense = crosscoder.encode(rows), crosscoder.encode(rows, compute=torch.bfloat16)

    assert searched == []
    assert len(dense.row) > 20
    assert all(torch.equal(one, other) for one, other in zip(codes[:3], dense[:3], strict=True))
    for name in ("shared", "only_a"):
        assert torch.equal(ours.codes[name].pattern.row, slow.codes[name].pattern.row)
        assert torch.equal(ours.codes[name].pattern.feature, slow.codes[name].pattern.feature)
        assert torch.equal(ours.codes[name].value, slow.codes[name].value)
