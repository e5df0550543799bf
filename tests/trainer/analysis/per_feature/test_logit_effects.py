"""Logit effects equal the explicit product, for norms of all conventions."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.worlds.tiny_models import tiny_llama
from trainer.analysis.per_feature import logit_effects as module
from trainer.analysis.per_feature.logit_effects import Unembedding, balanced_signs, logit_columns, logit_effects
from trainer.models.source import load_source
from trainer.recipe.fitting import SourceRecipe


class RmsNorm(nn.Module):
    """Divides by the root mean square and multiplies by `offset + weight` (Gemma: 1 + weight)."""

    def __init__(self, weight: torch.Tensor, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(weight), offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * (self.offset + self.weight)


def names(ids):
    return [f"<{token}>" for token in ids]


def unembedding(width: int, vocabulary: int, seed: int = 0) -> Unembedding:
    generator = torch.Generator().manual_seed(seed)
    gain = torch.rand(width, generator=generator) + 0.5
    return Unembedding(gain, False, torch.randn(vocabulary, width, generator=generator).bfloat16(), names)


@pytest.mark.parametrize("width", [2, 3, 8, 9])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_gain_of_an_rms_norm_is_found_whatever_it_stores(width, offset):
    weight = torch.linspace(-0.5, 2.0, width)
    found = Unembedding.from_norm(RmsNorm(weight, offset), torch.zeros(7, width), names)

    assert torch.allclose(found.gain, weight + offset, atol=1e-5)
    assert not found.centred


@pytest.mark.parametrize("width", [4, 5])
def test_a_layer_norm_is_recognised_by_its_subtraction_of_the_mean(width):
    norm = nn.LayerNorm(width)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, width))
        norm.bias.copy_(torch.linspace(3.0, -1.0, width))
    found = Unembedding.from_norm(norm, torch.zeros(7, width), names)
    direction = torch.randn(1, width)

    assert found.centred
    assert torch.allclose(found.gain, norm.weight, atol=1e-4)
    # The first-order effect of a step in the direction on the norm's output, before division.
    assert torch.allclose(found.through_norm(direction), (direction - direction.mean()) * norm.weight, atol=1e-4)


def test_without_a_final_norm_directions_are_unchanged():
    found = Unembedding.from_norm(nn.Identity(), torch.zeros(7, 6), names)

    assert torch.equal(found.gain, torch.ones(6))
    assert not found.centred


@pytest.mark.parametrize("width", [2, 3, 6, 7])
def test_the_probe_has_mean_zero_mean_square_one_and_no_zero(width):
    probe = balanced_signs(width)

    assert probe.mean().item() == pytest.approx(0, abs=1e-6)
    assert probe.square().mean().item() == pytest.approx(1)
    assert probe.abs().min() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "strides"), [(50, 64), (120, 4)])
def test_effects_are_those_of_the_explicit_product_tile_by_tile(dtype, tokens, strides, monkeypatch):
    monkeypatch.setattr(module, "TOKENS", tokens)
    monkeypatch.setattr(module, "STRIDES", strides)
    monkeypatch.setattr(module, "FEATURES", 4)
    monkeypatch.setattr(module, "product_dtype", lambda _: dtype)
    some = unembedding(16, 333)
    direction = torch.randn(9, 16, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 9)[:, None]
    found = logit_effects(direction, some, 5)

    unit = direction.double() / direction.double().norm(dim=1, keepdim=True)
    scores = ((unit * some.gain.double()) @ some.weight.double().T).numpy()
    order = np.argsort(-scores, axis=1)
    assert np.array_equal(found.promoted, order[:, :5])
    assert np.array_equal(found.suppressed, order[:, :-6:-1])
    assert np.allclose(found.promotion, np.take_along_axis(scores, order[:, :5], axis=1), atol=1e-5)
    assert np.allclose(found.suppression, np.take_along_axis(scores, order[:, :-6:-1], axis=1), atol=1e-5)


def test_a_vocabulary_smaller_than_what_is_asked_for_gives_all_of_it():
    found = logit_effects(torch.eye(3), unembedding(3, 4), 10)

    assert found.promoted.shape == (3, 4)
    assert [sorted(row) for row in found.promoted.tolist()] == [[0, 1, 2, 3]] * 3


def test_no_directions_have_no_effects():
    assert logit_effects(torch.zeros(0, 3), unembedding(3, 4), 2).promoted.shape == (0, 2)


def test_columns_rank_promoted_tokens_from_one_and_suppressed_from_minus_one():
    some = Unembedding(torch.ones(2), False, torch.tensor([[1.0, 0], [3, 0], [-2, 0]]), names)
    table = logit_columns(np.array([7]), 1, logit_effects(torch.tensor([[5.0, 0]]), some, 2), names)

    assert table.to_pylist() == [
        {"feature": 7, "source": 1, "rank": 1, "token": "<1>", "effect": 3.0},
        {"feature": 7, "source": 1, "rank": 2, "token": "<0>", "effect": 1.0},
        {"feature": 7, "source": 1, "rank": -1, "token": "<2>", "effect": -2.0},
        {"feature": 7, "source": 1, "rank": -2, "token": "<0>", "effect": 1.0},
    ]


def test_of_a_model_only_the_unembedding_stays_in_memory(tmp_path: Path):
    tiny_llama(tmp_path)
    source = load_source(SourceRecipe(name="left", model=str(tmp_path), layer=1))
    block = weakref.ref(source.blocks[0])
    unembedding = Unembedding.from_source(source)

    del source
    gc.collect()

    assert block() is None
    assert unembedding.text([5]) and len(unembedding.weight) > 5
