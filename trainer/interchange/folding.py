"""Folding: other weights for the same crosscoder, so that a format without normalisation or ranking can hold it.

Every function gives a crosscoder with the same firings and reconstructions up to rounding. What can be changed freely:
a feature's encoder and bias times c with its decoder divided by c; what is taken from or multiplied with a source's
activations, against the weights. The score that decides on firing, activation times decoder norm, does not change
under the first and does under the second, unless all sources are scaled alike; then features are rescaled so that
their activation is their score.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.interchange.layout import kept_per_row


def thresholds(crosscoder: Crosscoder) -> Tensor:
    """Score above which each feature is active [F]."""
    return torch.cat([crosscoder.threshold[group.name].float().expand(group.features) for group in crosscoder.groups])


def scores_per_activation(crosscoder: Crosscoder) -> Tensor:
    """What each feature's activation is multiplied with to give its score [F]."""
    return torch.cat([crosscoder.scale_of(group).detach().float() for group in crosscoder.groups])


def fires_when_positive(crosscoder: Crosscoder) -> bool:
    """Whether every feature is active whenever its pre-activation is above zero (ReLU)."""
    return not crosscoder.row_k and not bool(thresholds(crosscoder).any())


def summed(crosscoder: Crosscoder) -> Crosscoder:
    """Inputs are added up: a mean over reads is moved into the encoders."""
    if crosscoder.aggregation == "sum":
        return crosscoder
    weights = dict(crosscoder.weights)
    for kind, source, group in crosscoder.blocks():
        if kind == "encoder":
            name = f"encoder.{source}.{group.name}"
            weights[name] = weights[name] * crosscoder.read_factor(group)
    return replace(crosscoder, weights=weights, aggregation="sum")


def rescaled(crosscoder: Crosscoder, factor: Tensor) -> Crosscoder:
    """Activations are multiplied with a factor per feature [F], and decoders divided by it.

    A feature with factor 0 never fires again; its decoder stays. Thresholds and ranking are left to the caller.
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
    """Every feature's activation becomes its score, so that no ranking by decoder norm is needed.

    `norms` [F] are what activations are multiplied with to give scores, where the crosscoder cannot say it itself.
    """
    if norms is None:
        if crosscoder.rank_by == "activation":
            return crosscoder
        norms = scores_per_activation(crosscoder)
    return replace(rescaled(crosscoder, norms), rank_by="activation")


def with_one_threshold(crosscoder: Crosscoder, tool: str) -> tuple[Crosscoder, float]:
    """The crosscoder with one threshold for all features, and that threshold.

    Where they differ, activations become scores in units of their thresholds. Raises CrosscoderError when only some
    thresholds are zero, because then there are no such units.
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
    plain = rescaled(with_scores_as_activations(crosscoder), 1 / every)
    return replace(plain, threshold={group.name: torch.ones(()) for group in crosscoder.groups}), 1.0


def without_mean(crosscoder: Crosscoder) -> Crosscoder:
    """Nothing is subtracted from activations: means are moved into the biases. Firings and norms stay."""
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
    """The crosscoder for raw activations. Where sources are scaled differently, activations become scores."""
    centred = without_mean(crosscoder)
    scales = {source: normaliser.scale for source, normaliser in centred.normaliser.items()}
    if all(scale == 1.0 for scale in scales.values()):
        return centred
    identity = {source: Normaliser(n.mean, 1.0) for source, n in centred.normaliser.items()}
    if len(set(scales.values())) > 1 and not fires_when_positive(centred):
        return replace(stretched(with_scores_as_activations(centred), scales), normaliser=identity)
    smallest = min(scales.values()) if centred.rank_by != "activation" else 1.0
    threshold = {name: value / smallest for name, value in centred.threshold.items()}
    return replace(stretched(centred, scales), normaliser=identity, threshold=threshold)


def stretched(crosscoder: Crosscoder, by: Mapping[str, Tensor | float]) -> Crosscoder:
    """Weights for activations that are yet to be multiplied with `by`, a number or [W] per source.

    The caller sees to normalisers and thresholds: decoder norms change.
    """
    weights = dict(crosscoder.weights)
    for kind, source, group in crosscoder.blocks():
        name = f"{kind}.{source}.{group.name}"
        weights[name] = weights[name] * by[source] if kind == "encoder" else weights[name] / by[source]
    for source in crosscoder.targets:
        weights[f"decoder_bias.{source}"] = weights[f"decoder_bias.{source}"] / by[source]
    return replace(crosscoder, weights=weights)


def ranked_by_activation(crosscoder: Crosscoder, k: int | None, tool: str) -> tuple[Crosscoder, int]:
    """The crosscoder for raw activations, for a tool that keeps the k strongest features of a row, and that k.

    With ReLU and no k, all features are kept, which is the same. Raises CrosscoderError when there is no k to take.
    """
    kept = k or kept_per_row(crosscoder)
    if kept is None and not fires_when_positive(crosscoder):
        raise CrosscoderError(
            f"{tool} keeps the k strongest features of each row, and this crosscoder those above a threshold. "
            "Say how many to keep instead (k), or export it as crosscode, which has thresholds."
        )
    plain = summed(crosscoder)
    if kept is None:
        return without_normalisation(plain), crosscoder.features
    if kept > crosscoder.features:
        raise CrosscoderError(f"{tool} cannot keep {kept} of {crosscoder.features} features. Give a smaller k.")
    return without_normalisation(with_scores_as_activations(plain)), kept
