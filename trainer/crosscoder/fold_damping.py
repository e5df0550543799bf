"""Damping, undone: a crosscoder trained on activations whose dominant directions were scaled down, for all activations.

Some residual streams have directions that hold most of the variance and say little. Scaled down, they cost the
dictionary less; the finished crosscoder must not depend on it. With D what scales normalised activations down, an
encoder direction e reads D e from what is not scaled, and a decoder direction d writes d / D. Decoder norms change
with it, so that a threshold on activation times norm becomes one for each feature.
"""

from dataclasses import replace

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group


def undamped(crosscoder: Crosscoder) -> Crosscoder:
    """The same features and reconstructions, to rounding, without damping; itself when there is none."""
    damping = {source: one.damping for source, one in crosscoder.normaliser.items() if one.damping is not None}
    if not damping:
        return crosscoder
    weights = {name: weight.detach() for name, weight in crosscoder.weights.items()}
    for kind, source, group in crosscoder.blocks():
        if source in damping:
            name = f"{kind}.{source}.{group.name}"
            one = damping[source]
            weights[name] = one(weights[name]) if kind == "encoder" else one.undone(weights[name])
    for source in damping.keys() & set(crosscoder.targets):
        weights[f"decoder_bias.{source}"] = damping[source].undone(weights[f"decoder_bias.{source}"])
    plain = {source: replace(one, damping=None) for source, one in crosscoder.normaliser.items()}
    folded = replace(crosscoder, weights=weights, normaliser=plain)
    if crosscoder.row_k:
        for group in crosscoder.groups:
            _count_in_scores(folded, group, crosscoder)
        folded.rank_by = "activation"
        return folded
    for group in crosscoder.groups:
        now, then = folded.scale_of(group), crosscoder.scale_of(group).detach().clamp_min(1e-12)
        folded.threshold = folded.threshold | {group.name: crosscoder.threshold[group.name].to(now.device) * now / then}
    return folded


def _count_in_scores(folded: Crosscoder, group: Group, trained: Crosscoder) -> None:
    """Let every activation of a group be the score it had in training, so that the k strongest stay the same."""
    score = trained.scale_of(group).detach().clamp_min(1e-12)
    folded.weights[f"encoder_bias.{group.name}"] = folded.weights[f"encoder_bias.{group.name}"] * score
    for source in group.reads:
        folded.weights[f"encoder.{source}.{group.name}"] = (
            folded.weights[f"encoder.{source}.{group.name}"] * score[:, None]
        )
    for source in group.writes:
        folded.weights[f"decoder.{source}.{group.name}"] = (
            folded.weights[f"decoder.{source}.{group.name}"] / score[:, None]
        )
