"""Folds the damping of dominant directions into the weights after training.

Some residual streams have directions that hold most of the variance and little information. Damped during training,
they take up less of the dictionary; the saved crosscoder works on undamped activations. With D the matrix that damps
normalised activations, an encoder direction e becomes D e and a decoder direction d becomes D^-1 d. Decoder norms
change, so that a threshold on activation times norm becomes one threshold per feature.
"""

from dataclasses import replace

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group


def fold_damping(crosscoder: Crosscoder) -> Crosscoder:
    """A crosscoder with the same features and reconstructions, to rounding, and no damping; itself if there is none."""
    damping = {source: one.damping for source, one in crosscoder.normaliser.items() if one.damping is not None}
    if not damping:
        return crosscoder
    weights = {name: weight.detach() for name, weight in crosscoder.weights.items()}
    for kind, source, group in crosscoder.blocks():
        if source in damping:
            name = f"{kind}.{source}.{group.name}"
            scaling = damping[source]
            weights[name] = scaling(weights[name]) if kind == "encoder" else scaling.inverse(weights[name])
    for source in damping.keys() & set(crosscoder.targets):
        weights[f"decoder_bias.{source}"] = damping[source].inverse(weights[f"decoder_bias.{source}"])
    plain = {source: replace(one, damping=None) for source, one in crosscoder.normaliser.items()}
    folded = replace(crosscoder, weights=weights, normaliser=plain)
    if crosscoder.row_k:
        for group in crosscoder.groups:
            _rescale_to_scores(folded, group, crosscoder)
        folded.rank_by = "activation"
        return folded
    for group in crosscoder.groups:
        now, then = folded.score_scale(group), crosscoder.score_scale(group).detach().clamp_min(1e-12)
        folded.threshold = folded.threshold | {group.name: crosscoder.threshold[group.name].to(now.device) * now / then}
    return folded


def _rescale_to_scores(folded: Crosscoder, group: Group, trained: Crosscoder) -> None:
    """Rescale a group so that activations equal their scores in training and TopK keeps the same features."""
    score = trained.score_scale(group).detach().clamp_min(1e-12)
    folded.weights[f"encoder_bias.{group.name}"] = folded.weights[f"encoder_bias.{group.name}"] * score
    for source in group.reads:
        folded.weights[f"encoder.{source}.{group.name}"] = (
            folded.weights[f"encoder.{source}.{group.name}"] * score[:, None]
        )
    for source in group.writes:
        folded.weights[f"decoder.{source}.{group.name}"] = (
            folded.weights[f"decoder.{source}.{group.name}"] / score[:, None]
        )
