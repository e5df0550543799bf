"""Encoding in a training step uses the current weights."""

import torch

from tests.worlds.tiny_activations import WIDTHS, tiny_activations, tiny_recipe
from trainer.training.encoding import budgets, encode_sparse
from trainer.training.trainer import Training


def test_encoding_uses_the_current_weights_rather_than_a_stale_copy(tmp_path):
    training = Training(tiny_recipe(), tiny_activations(tmp_path / "store"))
    batch = next(iter(training.remaining_batches()))
    training.run_step(batch)
    crosscoder, sparsity = training.crosscoder, training.recipe.crosscoder.sparsity
    training.encoder = type(training.encoder)(crosscoder, torch.float32)
    rows = crosscoder.normalise(batch)
    keep = budgets(crosscoder, sparsity, 64 * 3)
    encode_sparse(crosscoder, rows, sparsity, keep, training.guess, training.encoder)
    with torch.no_grad():
        for source in WIDTHS:
            crosscoder.weights[f"encoder.{source}.shared"] += 0.5

    done = encode_sparse(crosscoder, rows, sparsity, keep, training.guess, training.encoder)

    group = crosscoder.groups[0]
    scores = crosscoder.pre_activations(group, rows) * crosscoder.score_scale(group)
    share = keep[0][1]
    best = set(torch.topk(scores.detach().flatten(), share).indices.tolist())
    pattern = done.codes["shared"].pattern
    kept = set((pattern.row * group.features + pattern.feature).tolist())
    assert len(best) == len(kept) == share
    assert len(best & kept) >= share - 1, "one entry may be tied"
