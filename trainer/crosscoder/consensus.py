"""Finds the features that several trainings of the same dictionary have in common.

A feature that one training finds may be an accident of its initial weights. Two features of different trainings are the
same if each is the other's nearest by decoder direction, the directions are similar, and the activations correlate.
Features are joined to clusters from the most similar pair on, with at most one feature of each training; a cluster is
represented by the member that is most similar to the others. Axes: F features of a group, R trainings, N rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from trainer.crosscoder.column_moments import column_moments
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group

COSINE = 0.7
"""Least cosine of the decoder directions of two trainings' features."""
CORRELATION = 0.5
"""Least correlation of their activations."""
BLOCK = 1024
"""Features compared at a time."""

Cluster = dict[int, int]
"""By training, the feature that belongs to the cluster."""


def consensus(trained: Sequence[Crosscoder], activations: Sequence[sp.csc_array], found_in: int) -> Crosscoder:
    """The features that at least `found_in` of several trainings have, as one crosscoder; groups may become empty.

    The trainings agree in all but their seed; `activations` are theirs on the same rows [N, features]. Within a group
    features come in order of the trainings that have them. Groups without a feature are left out.
    """
    first = trained[0]
    groups: list[Group] = []
    weights = {name: weight for name, weight in first.weights.items() if name.startswith("decoder_bias.")}
    threshold: dict[str, Tensor] = {}
    recurrence: dict[str, Tensor] = {}
    for group in first.groups:
        directions = [unit_directions(one, group) for one in trained]
        columns = [part[:, group.first : group.stop] for part in activations]
        found = clusters(directions, partial(_correlation, columns))
        kept = sorted((one for one in found if len(one) >= found_in), key=lambda one: (-len(one), sorted(one.items())))
        if not kept:
            continue
        chosen = [representative(one, directions) for one in kept]
        start = groups[-1].stop if groups else 0
        groups.append(replace(group, features=len(kept), first=start))
        weights |= {name: _gather(trained, name, chosen) for name in blocks(group)}
        threshold[group.name] = torch.stack([_threshold(trained[r], group)[index] for r, index in chosen])
        recurrence[group.name] = torch.tensor([len(one) for one in kept])
    return replace(
        first,
        groups=tuple(groups),
        weights=weights,
        threshold=threshold,
        trainings=len(trained),
        recurrence=recurrence,
    )


def clusters(
    directions: Sequence[Tensor],
    correlation: Callable[[int, int, np.ndarray, np.ndarray], np.ndarray],
) -> list[Cluster]:
    """Clusters of the features of several trainings, each feature in one of them.

    `directions` are unit vectors of every training [F, W]; `correlation(a, b, i, j)` gives that of the activations of
    features i of training a with features j of training b [pairs].
    """
    pairs: list[tuple[float, tuple[int, int], tuple[int, int]]] = []
    for a in range(len(directions)):
        for b in range(a + 1, len(directions)):
            i, j, cosine = mutually_nearest(directions[a], directions[b])
            alike = (cosine >= COSINE) & (correlation(a, b, i, j) >= CORRELATION)
            pairs += [
                (-value, (a, int(one)), (b, int(other)))
                for value, one, other in zip(cosine[alike].tolist(), i[alike], j[alike], strict=True)
            ]
    cluster_of: dict[tuple[int, int], Cluster] = {
        (training, feature): {training: feature}
        for training, direction in enumerate(directions)
        for feature in range(len(direction))
    }
    for _, one, other in sorted(pairs):
        left, right = cluster_of[one], cluster_of[other]
        if left.keys() & right.keys():
            continue
        left |= right
        for member in right.items():
            cluster_of[member] = left
    return list({id(one): one for one in cluster_of.values()}.values())


def representative(cluster: Cluster, directions: Sequence[Tensor]) -> tuple[int, int]:
    """Training and feature of the member whose direction is most similar to the others'; the first of equals."""
    members = sorted(cluster.items())
    stacked = torch.stack([directions[training][feature] for training, feature in members])
    return members[int((stacked @ stacked.T).sum(dim=1).argmax())]


def add_consensus(crosscoder: Crosscoder, found: Crosscoder) -> Crosscoder:
    """A crosscoder with the features of a consensus of residual dictionaries after its own.

    Both were trained on the same sources with the same normalisers. The added features are in no reconstruction.
    """
    weights, start = dict(crosscoder.weights), crosscoder.features
    groups = []
    for group in found.groups:
        placed = replace(group, first=start, reconstructs=False)
        weights |= {name: found.weights[name] for name in blocks(group)}
        for source in group.reads:  # a mean over the sources read is a sum in residual dictionaries
            name = f"encoder.{source}.{group.name}"
            weights[name] = weights[name] / crosscoder.read_factor(group)
        groups.append(placed)
        start = placed.stop
    return replace(
        crosscoder,
        groups=(*crosscoder.groups, *groups),
        weights=weights,
        threshold=crosscoder.threshold | found.threshold,
        trainings=found.trainings,
        recurrence=found.recurrence,
        identity=found.identity,
    )


def unit_directions(crosscoder: Crosscoder, group: Group) -> Tensor:
    """Unit decoder directions of a group, over all sources that it writes, side by side."""
    parts = [crosscoder.weights[f"decoder.{source}.{group.name}"].detach().float() for source in group.writes]
    return torch.nn.functional.normalize(torch.cat(parts, dim=1), dim=1)


def blocks(group: Group) -> list[str]:
    """Names of a group's weights whose first axis is its features."""
    encoders = [f"encoder.{source}.{group.name}" for source in group.reads]
    return [*encoders, *(f"decoder.{source}.{group.name}" for source in group.writes), f"encoder_bias.{group.name}"]


def _gather(trained: Sequence[Crosscoder], name: str, chosen: Sequence[tuple[int, int]]) -> Tensor:
    """Rows of a weight, each from the training that is named with it."""
    return torch.stack([trained[training].weights[name][feature].detach() for training, feature in chosen])


def _threshold(crosscoder: Crosscoder, group: Group) -> Tensor:
    return crosscoder.threshold[group.name].expand(group.features)


def mutually_nearest(one: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of features that are each other's nearest, and their cosines [pairs]."""
    forward = _nearest(one, other)
    backward, cosine = _nearest(other, one)[0], forward[1]
    mutual = np.flatnonzero(backward[forward[0]] == np.arange(len(one)))
    return mutual, forward[0][mutual], cosine[mutual]


def _nearest(one: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For each feature the nearest one of another training, and its cosine [F]."""
    best = [(part @ other.T).max(dim=1) for part in one.split(BLOCK)]
    return (
        torch.cat([found.indices for found in best]).cpu().numpy(),
        torch.cat([found.values for found in best]).cpu().numpy(),
    )


def _correlation(activations: Sequence[sp.csc_array], one: int, other: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Correlation of features i of one training with features j of another [pairs]; 0 where one is constant."""
    left, right = activations[one][:, i], activations[other][:, j]
    rows = left.shape[0]
    product = np.asarray(left.multiply(right).sum(axis=0)).ravel() / rows
    (mean, deviation), (other_mean, other_deviation) = column_moments(left), column_moments(right)
    scale = deviation * other_deviation
    result: np.ndarray = np.divide(product - mean * other_mean, scale, out=np.zeros(len(i)), where=scale > 0)
    return result
