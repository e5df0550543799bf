"""Folds normalisation and ranking into the weights, for formats that have neither.

Every function returns a crosscoder with the same firings and reconstructions up to rounding. There are two symmetries:
a feature's encoder and bias times c with its decoder divided by c, and a source's mean or scale moved between the
normaliser and the weights. The score that decides on firing, activation times decoder norm, is invariant under the
first. Under the second it is only when all sources have the same scale; otherwise features are rescaled so that the
activation equals the score.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.interchange.layout import k_per_row


def thresholds(crosscoder: Crosscoder) -> Tensor:
    """Threshold of each feature on its score [F]."""
    return torch.cat([crosscoder.threshold[group.name].float().expand(group.features) for group in crosscoder.groups])


def scores_per_activation(crosscoder: Crosscoder) -> Tensor:
    """Ratio of each feature's score to its activation [F]."""
    return torch.cat([crosscoder.score_scale(group).detach().float() for group in crosscoder.groups])


def fires_when_positive(crosscoder: Crosscoder) -> bool:
    """Whether every feature is active exactly when its pre-activation is positive (ReLU)."""
    return not crosscoder.row_k and not bool(thresholds(crosscoder).any())


def with_summed_inputs(crosscoder: Crosscoder) -> Crosscoder:
    """The crosscoder with aggregation `sum`: a mean over the sources read is moved into the encoders."""
    if crosscoder.aggregation == "sum":
        return crosscoder
    weights = dict(crosscoder.weights)
    for kind, source, group in crosscoder.blocks():
        if kind == "encoder":
            name = f"encoder.{source}.{group.name}"
            weights[name] = weights[name] * crosscoder.read_factor(group)
    return replace(crosscoder, weights=weights, aggregation="sum")


def with_rescaled_activations(crosscoder: Crosscoder, factor: Tensor) -> Crosscoder:
    """Multiplies encoders and biases by a factor per feature [F], and divides decoders by it.

    A feature with factor 0 never fires; its decoder stays. The caller adapts thresholds and ranking.
    """
    weights = dict(crosscoder.weights)
    for group in crosscoder.groups:
        part = factor[group.first : group.stop]
        weights[f"encoder_bias.{group.name}"] = weights[f"encoder_bias.{group.name}"] * part
    for kind, source, group in crosscoder.blocks():
        part = factor[group.first : group.stop, None]
        name = f"{kind}.{source}.{group.name}"
        weights[name] = weights[name] * part if kind == "encoder" else weights[name] / torch.where(part > 0, part, 1.0)
    return replace(crosscoder, weights=weights)


def with_scores_as_activations(crosscoder: Crosscoder, norms: Tensor | None = None) -> Crosscoder:
    """Rescales features so that the activation equals the score, which makes ranking by decoder norm unnecessary.

    `norms` [F], scores per activation, override those of the crosscoder's `rank_by`.
    """
    if norms is None:
        if crosscoder.rank_by == "activation":
            return crosscoder
        norms = scores_per_activation(crosscoder)
    return replace(with_rescaled_activations(crosscoder, norms), rank_by="activation")


def with_one_threshold(crosscoder: Crosscoder, tool: str) -> tuple[Crosscoder, float]:
    """The crosscoder with one threshold for all features, and that threshold.

    Where thresholds differ, activations become scores divided by their thresholds. Raises CrosscoderError when only
    some thresholds are zero, because that division is then undefined.
    """
    every = thresholds(crosscoder)
    if bool((every == every[0]).all()):
        return crosscoder, float(every[0])
    if not bool(every.all()):
        groups = ", ".join(f"{group.name} {float(every[group.first]):.3g}" for group in crosscoder.groups)
        raise CrosscoderError(
            f"{tool} has one threshold for all features, and this crosscoder has {groups}, some of them zero. "
            "Export it as crosscode or saelens, which have one for each feature, or keep Crossdiff's own files."
        )
    folded = with_rescaled_activations(with_scores_as_activations(crosscoder), 1 / every)
    return replace(folded, threshold={group.name: torch.ones(()) for group in crosscoder.groups}), 1.0


def without_mean(crosscoder: Crosscoder) -> Crosscoder:
    """Moves the means of the normalisers into the biases; firings and decoder norms stay."""
    if not any(bool(normaliser.mean.any()) for normaliser in crosscoder.normaliser.values()):
        return crosscoder
    weights = dict(crosscoder.weights)
    offset = {s: normaliser.mean.double() * normaliser.scale for s, normaliser in crosscoder.normaliser.items()}
    for group in crosscoder.groups:
        read = sum(weights[f"encoder.{s}.{group.name}"].double() @ offset[s] for s in group.reads)
        name = f"encoder_bias.{group.name}"
        weights[name] = (weights[name].double() - crosscoder.read_factor(group) * read).float()
    for source in crosscoder.targets:
        name = f"decoder_bias.{source}"
        weights[name] = (weights[name].double() + offset[source]).float()
    normaliser = {s: Normaliser(torch.zeros_like(n.mean), n.scale) for s, n in crosscoder.normaliser.items()}
    return replace(crosscoder, weights=weights, normaliser=normaliser)


def without_normalisation(crosscoder: Crosscoder) -> Crosscoder:
    """Moves the normalisers into the weights; where scales differ between sources, activations become scores."""
    centred = without_mean(crosscoder)
    scales = {source: normaliser.scale for source, normaliser in centred.normaliser.items()}
    if all(scale == 1.0 for scale in scales.values()):
        return centred
    identity = {source: Normaliser(n.mean, 1.0) for source, n in centred.normaliser.items()}
    if len(set(scales.values())) > 1 and not fires_when_positive(centred):
        return replace(with_rescaled_sources(with_scores_as_activations(centred), scales), normaliser=identity)
    smallest = min(scales.values()) if centred.rank_by != "activation" else 1.0
    threshold = {name: value / smallest for name, value in centred.threshold.items()}
    return replace(with_rescaled_sources(centred, scales), normaliser=identity, threshold=threshold)


def with_rescaled_sources(crosscoder: Crosscoder, factor: Mapping[str, Tensor | float]) -> Crosscoder:
    """Multiplies encoders by a factor per source, a number or [W], and divides decoders and their biases by it.

    Decoder norms change; the caller adapts normalisers and thresholds.
    """
    weights = dict(crosscoder.weights)
    for kind, source, group in crosscoder.blocks():
        name = f"{kind}.{source}.{group.name}"
        weights[name] = weights[name] * factor[source] if kind == "encoder" else weights[name] / factor[source]
    for source in crosscoder.targets:
        weights[f"decoder_bias.{source}"] = weights[f"decoder_bias.{source}"] / factor[source]
    return replace(crosscoder, weights=weights)


def for_top_k(crosscoder: Crosscoder, k: int | None, tool: str) -> tuple[Crosscoder, int]:
    """The crosscoder for raw activations, for a tool with TopK per row, and its k.

    For ReLU without k, k is the number of features. Raises CrosscoderError for thresholds without k.
    """
    row_k = k or k_per_row(crosscoder)
    if row_k is None and not fires_when_positive(crosscoder):
        raise CrosscoderError(
            f"{tool} keeps the k strongest features of each row, and this crosscoder those above a threshold. "
            "Say how many to keep instead (k), or export it as crosscode, which has thresholds."
        )
    folded = with_summed_inputs(crosscoder)
    if row_k is None:
        return without_normalisation(folded), crosscoder.features
    if row_k > crosscoder.features:
        raise CrosscoderError(f"{tool} cannot keep {row_k} of {crosscoder.features} features. Give a smaller k.")
    return without_normalisation(with_scores_as_activations(folded)), row_k
