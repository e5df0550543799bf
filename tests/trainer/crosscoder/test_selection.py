"""BatchTopK is exact whatever the guess, and ranks as the recipe says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.crosscoder.selection import RunningThreshold, Search, batch_topk, guess_margin, ranking_norm
from trainer.kernels.sparse import entries_above


def search_in(pre: list[torch.Tensor]) -> Search:
    """A search in given pre-activations."""
    return lambda bounds: [entries_above(p, bound) for p, bound in zip(pre, bounds, strict=True)]


@settings(deadline=None)  # the first example may wait for a compiler
@given(
    seed=st.integers(0, 10**6),
    keep=st.integers(1, 60),
    guess=st.floats(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_largest_scores_over_all_groups_are_kept_whatever_the_guess(seed, keep, guess, dtype):
    generator = torch.Generator().manual_seed(seed)
    pre = [torch.randn(4, size, generator=generator).to(dtype) for size in (9, 3)]
    scale = [torch.rand(size, generator=generator) + 0.5 for size in (9, 3)]

    kept = batch_topk(search_in(pre), scale, keep, guess).kept

    scores = [(p.float() * s).flatten() for p, s in zip(pre, scale, strict=True)]
    everything = torch.cat(scores)
    kept_scores = torch.cat([score[index] for score, index in zip(scores, kept, strict=True)])
    expected = torch.sort(everything[everything > 0], descending=True).values[:keep]
    assert torch.equal(torch.sort(kept_scores, descending=True).values, expected)
    assert all(bool((index.diff() > 0).all()) for index in kept)


def test_a_guess_too_small_to_be_lowered_ends_the_search():
    kept = batch_topk(search_in([torch.tensor([[1.0, -1.0]])]), [torch.ones(2)], keep=2, guess=5e-324).kept

    assert kept[0].tolist() == [0]


def test_the_threshold_is_the_smallest_score_kept():
    selection = batch_topk(search_in([torch.tensor([[3.0, 1.0], [2.0, -5.0]])]), [torch.tensor([1.0, 2.5])], keep=2)

    assert selection.kept[0].tolist() == [0, 1]
    assert selection.threshold == 2.5


def test_negative_scores_are_never_kept_even_when_the_budget_is_not_used_up():
    assert batch_topk(search_in([torch.tensor([[-1.0, 0.0, 0.5]])]), [torch.ones(3)], keep=3).kept[0].tolist() == [2]


@pytest.mark.parametrize(
    ("rank_by", "expected"),
    [
        ("largest_norm", [4.0, 5.0]),
        ("sum_of_norms", [7.0, 5.0]),
        ("root_sum_of_squares", [5.0, 5.0]),
        ("activation", [1.0, 1.0]),
    ],
)
def test_an_exclusive_feature_competes_at_full_weight_only_by_its_largest_norm(rank_by, expected):
    shared, exclusive = [3.0, 4.0], [0.0, 5.0]
    norms = [torch.tensor([shared[0], exclusive[0]]), torch.tensor([shared[1], exclusive[1]])]

    assert ranking_norm(norms, rank_by).tolist() == expected


def test_the_running_threshold_starts_at_the_first_value_and_follows_later_ones_more_slowly():
    running = RunningThreshold(decay=0.9)
    running.update(2.0)
    assert running.value == 2.0

    running.update(3.1)
    assert running.value == pytest.approx(3.0), "the second of two values has a weight of 10/11"

    for _ in range(500):
        running.update(3.0)
    running.update(4.0)
    assert running.value == pytest.approx(3.1)


def test_of_equal_scores_the_first_are_kept_within_the_budget():
    pre = torch.tensor([[1.0, 2.0, 1.0], [1.0, 0.5, 1.0]])

    selection = batch_topk(search_in([pre]), [torch.ones(3)], 3)

    assert (selection.kept[0].tolist(), selection.threshold) == ([0, 1, 2], 1.0)


def test_the_fewer_are_kept_the_lower_the_first_bound():
    assert [guess_margin(keep) for keep in (1, 49, 10_000, 10**6)] == [0.5, 0.5, 0.035, 0.02]


def test_a_guess_close_to_the_threshold_loses_nothing_to_bfloat16_rounding():
    for seed in range(560, 570):  # at 564, rounding a column's bound up once dropped the last score to keep
        generator = torch.Generator().manual_seed(seed)
        pre = torch.rand(6, 40, generator=generator).to(torch.bfloat16)
        scale = torch.rand(40, generator=generator) + 0.5
        scores = torch.sort((pre.float() * scale).flatten(), descending=True).values[:20]
        error = 1 + (torch.rand(1, generator=generator).item() - 0.5) * 0.006

        kept = batch_topk(search_in([pre]), [scale], 20, float(scores[-1]) / (1 - guess_margin(20)) * error).kept[0]

        kept_scores = (pre.float() * scale).flatten()[kept]
        assert torch.equal(torch.sort(kept_scores, descending=True).values, scores)
