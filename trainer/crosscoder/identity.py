"""Gives the features that several trainings have in common ids and places that stay when a run is trained again.

Trainings that differ, by their seed or by rounding, give the same features in another order. A feature of an earlier
training is known again by its decoder direction: each is the other's nearest, and their cosine is high. It then keeps
its place in the dictionary, so that addresses and labels stay right. The place of one that is not found again stays
empty, with the direction by which it may be known later. Axes: N features found now, P places.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trainer.crosscoder.consensus import blocks, mutually_nearest, unit_directions
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group

SAME = 0.8
"""Least cosine of the decoder directions of a feature and the one that it was before."""
EMPTY = -1
"""In an order of places, one whose feature was not found again."""


def identify(found: Crosscoder, previous: Crosscoder | None, others: Sequence[Crosscoder] = ()) -> Crosscoder:
    """A consensus with its features in the places and under the ids that they had before.

    `previous` is what the same run had; `others` are other runs of the comparison, which lend their ids. A feature that
    is in none of them gets an id from its direction, sixteen hex digits.
    """
    before = {group.name: group for group in _identified_groups(previous)}
    now = {group.name: group for group in found.groups}
    groups: list[Group] = []
    parts = replace(found, weights=dict(found.weights), threshold={}, recurrence={}, identity={})
    for name in dict.fromkeys([*before, *now]):
        if previous is None or name not in before:
            order, known = np.arange(now[name].features), tuple[str, ...]()
        else:
            order, known = _places(found, now.get(name), previous, before[name]), previous.identity[name]
        group = replace(now.get(name) or before[name], features=len(order), first=groups[-1].stop if groups else 0)
        groups.append(replace(group, reconstructs=True))
        origin = found if name in now else previous
        assert origin is not None, "a group is of the consensus or of the previous crosscoder"
        _place(parts, origin, group, order)
        if previous is not None and name in before:
            _keep_directions(parts, previous, group, order)
        parts.identity[name] = _ids(parts, group, known, others)
    return replace(parts, groups=tuple(groups))


def _identified_groups(crosscoder: Crosscoder | None) -> tuple[Group, ...]:
    return () if crosscoder is None else tuple(one for one in crosscoder.groups if one.name in crosscoder.identity)


def _places(found: Crosscoder, now: Group | None, previous: Crosscoder, before: Group) -> np.ndarray:
    """For every place the feature found now, or EMPTY; those not known from before come last, in order [P]."""
    places = np.full(before.features, EMPTY)
    if now is None:
        return places
    new, old, cosine = mutually_nearest(unit_directions(found, now), unit_directions(previous, before))
    places[old[cosine >= SAME]] = new[cosine >= SAME]
    return np.concatenate([places, np.setdiff1d(np.arange(now.features), places)])


def _place(parts: Crosscoder, origin: Crosscoder, group: Group, order: np.ndarray) -> None:
    """Put a group's weights into their places; what is in an empty place never fires."""
    index, empty = torch.from_numpy(np.maximum(order, 0)), torch.from_numpy(order == EMPTY)

    def placed(values: Tensor, otherwise: float) -> Tensor:
        chosen = values.detach()[index.to(values.device)].clone()
        chosen[empty.to(values.device)] = otherwise
        return chosen

    for name in blocks(group):
        parts.weights[name] = placed(origin.weights[name], 0)
    parts.threshold[group.name] = placed(origin.threshold[group.name], torch.inf)
    parts.recurrence[group.name] = placed(origin.recurrence[group.name], 0)


def _keep_directions(parts: Crosscoder, previous: Crosscoder, group: Group, order: np.ndarray) -> None:
    """Leave the decoder directions of features that were not found again in their places."""
    empty = np.flatnonzero(order == EMPTY)
    for source in group.writes:
        name = f"decoder.{source}.{group.name}"
        parts.weights[name][empty] = previous.weights[name][empty].to(parts.weights[name].device)


def _ids(parts: Crosscoder, group: Group, known: Sequence[str], others: Sequence[Crosscoder]) -> tuple[str, ...]:
    """Ids of a group's places: those known, for the others those of another run, or new ones."""
    directions = unit_directions(parts, group)
    ids = [*known, *([""] * (group.features - len(known)))]
    for other in others:
        for its in _identified_groups(other):
            if its.name != group.name or its.features == 0:
                continue
            one, another, cosine = mutually_nearest(directions, unit_directions(other, its))
            for mine, theirs in zip(one[cosine >= SAME], another[cosine >= SAME], strict=True):
                lent = other.identity[its.name][theirs]
                if not ids[mine] and lent not in ids:
                    ids[mine] = lent
    hashes = (hashlib.blake2b(row.cpu().numpy().tobytes(), digest_size=8).hexdigest() for row in directions)
    return tuple(one or new for one, new in zip(ids, hashes, strict=True))
