"""Groups: contiguous ranges of features with the same reads and writes.

Every crosscoder variant is a list of groups. A block that a group may neither read nor write does
not exist as a parameter, so it needs no mask and can receive no gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import RecipeError
from trainer.recipe.fitting import CrosscoderRecipe

Names = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A contiguous range of features that read the same sources and write the same sources."""

    name: str
    features: int
    first: int
    """Index of the group's first feature in the whole dictionary."""
    reads: Names
    writes: Names
    tied: bool = False
    """One decoder for all sources it writes."""
    k_factor: float = 1.0
    """What its own budget is multiplied with."""
    penalty: float = 1.0
    """What its sparsity penalty is multiplied with."""

    @property
    def stop(self) -> int:
        """One past the index of the group's last feature."""
        return self.first + self.features


@dataclass(frozen=True)
class _Plan:
    """A group before it has its place in the dictionary; `share` is of the features that are left."""

    name: str
    features: int
    reads: Names
    writes: Names
    tied: bool = False
    k_factor: float = 1.0
    penalty: float = 1.0


def preset(recipe: CrosscoderRecipe, widths: Mapping[str, int]) -> tuple[Group, ...]:
    """The groups of a recipe's variant over sources of these widths, in order.

    `standard` is the acausal crosscoder of Lindsey et al. 2024, `dfc` the Dedicated Feature Crosscoder of
    arXiv 2602.11729 for any number of sources, `designated_shared` that of the 2025 diffing update; layered variants
    take sources as layers in order. Raises RecipeError when the recipe and the sources do not fit together.
    """
    inputs, targets = recipe.inputs or tuple(widths), recipe.targets or tuple(widths)
    for name in {*inputs, *targets, *(name for subset in recipe.subsets for name in subset)} - widths.keys():
        raise RecipeError(f"crosscoder: no source is named {name!r}. The sources are {', '.join(widths)}.")
    plans = _PLANS[recipe.variant](recipe, inputs, targets, widths)
    return _laid_out(plans, recipe, widths)


def differences(recipe: CrosscoderRecipe, widths: Mapping[str, int]) -> dict[str, tuple[str, str]]:
    """Sources made by subtracting one source from another: name to (minuend, subtrahend).

    Only `diff_sae` has one. Raises RecipeError unless there are two sources of one width.
    """
    if recipe.variant != "diff_sae":
        return {}
    if len(widths) != 2 or len(set(widths.values())) != 1:
        found = ", ".join(f"{name} (width {width})" for name, width in widths.items())
        raise RecipeError(f"crosscoder: diff_sae needs two sources of one width, and has {found}. Use dfc instead.")
    before, after = widths
    return {f"{after}-minus-{before}": (after, before)}


def _whole(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _need_several(recipe, inputs, targets)
    return [_Plan("shared", recipe.features, inputs, targets)]


def _single(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    if len(inputs) != 1 or inputs != targets:
        raise RecipeError(f"crosscoder: {recipe.variant} has one source, and there are {', '.join(inputs)}. Use dfc.")
    return [_Plan(inputs[0], recipe.features, inputs, targets)]


def _dedicated(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _need_several(recipe, inputs, targets)
    sets = [(source,) for source in inputs] + [tuple(subset) for subset in recipe.subsets]
    dedicated = round(recipe.features * recipe.exclusive_share)
    shared = recipe.features - dedicated * len(sets)
    if dedicated < 1 or shared < 1:
        raise RecipeError(
            f"crosscoder: {recipe.features} features with an exclusive share of {recipe.exclusive_share} leave "
            f"{dedicated} for each of {len(sets)} groups and {shared} shared. Each group needs at least one."
        )
    return [_Plan("shared", shared, inputs, targets)] + [_Plan("+".join(s), dedicated, s, s) for s in sets]


def _designated(recipe: CrosscoderRecipe, inputs: Names, targets: Names, widths: Mapping[str, int]) -> list[_Plan]:
    _need_several(recipe, inputs, targets)
    shared = max(1, round(recipe.features * recipe.shared_share))
    tied = len({widths[name] for name in targets}) == 1
    discount = {"k_factor": recipe.shared_k_factor, "penalty": recipe.shared_penalty}
    return [
        _Plan("shared", shared, inputs, targets, tied, **discount),
        _Plan("free", recipe.features - shared, inputs, targets),
    ]


def _weakly_causal(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    return _by_layer(recipe, [((name,), targets[layer:]) for layer, name in enumerate(inputs)], inputs)


def _strictly_causal(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    # What a layer's MLP adds comes after what it read; a residual stream comes after itself one layer later.
    later = int(inputs == targets)
    spans = [((name,), targets[layer + later :]) for layer, name in enumerate(inputs)]
    return _by_layer(recipe, [span for span in spans if span[1]], inputs)


def _transcoder(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _need_targets(recipe, inputs, targets)
    return _by_layer(recipe, [((one,), (other,)) for one, other in zip(inputs, targets, strict=True)], inputs)


def _cross_layer(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _need_targets(recipe, inputs, targets)
    return _strictly_causal(recipe, inputs, targets, {})


def _local_window(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    spans = []
    for layer in range(len(inputs)):
        near = slice(max(0, layer - recipe.window), layer + recipe.window + 1)
        spans.append((inputs[near], targets[near]))
    return _by_layer(recipe, spans, inputs)


def _difference(recipe: CrosscoderRecipe, _: Names, __: Names, widths: Mapping[str, int]) -> list[_Plan]:
    (name,) = differences(recipe, widths)
    return [_Plan(name, recipe.features, (name,), (name,))]


def _custom(recipe: CrosscoderRecipe, _: Names, __: Names, ___: Mapping[str, int]) -> list[_Plan]:
    if not recipe.groups:
        raise RecipeError("crosscoder: variant custom needs `groups`, a list of {name, features, reads, writes}.")
    return [_Plan(**group.model_dump()) for group in recipe.groups]


def _by_layer(recipe: CrosscoderRecipe, spans: list[tuple[Names, Names]], inputs: Names) -> list[_Plan]:
    """Equal groups, one for each layer, named after the source that gives the layer."""
    each, rest = divmod(recipe.features, len(spans))
    return [
        _Plan(f"at-{inputs[index]}", each + (index < rest), reads, writes)
        for index, (reads, writes) in enumerate(spans)
    ]


def _need_several(recipe: CrosscoderRecipe, inputs: Names, targets: Names) -> None:
    names = {*inputs, *targets}
    if len(names) < 2:
        raise RecipeError(
            f"crosscoder: {recipe.variant} compares sources, and there is only {', '.join(names)}. "
            "Add the other source, or set crosscoder.variant to sae."
        )


def _need_targets(recipe: CrosscoderRecipe, inputs: Names, targets: Names) -> None:
    if inputs == targets or len(inputs) != len(targets):
        raise RecipeError(
            f"crosscoder: {recipe.variant} needs `inputs` and as many `targets` in layer order, for example "
            "inputs: [mlp-in-0, mlp-in-1] and targets: [mlp-out-0, mlp-out-1]."
        )


_PLANS = {
    "sae": _single,
    "standard": _whole,
    "dfc": _dedicated,
    "designated_shared": _designated,
    "weakly_causal": _weakly_causal,
    "strictly_causal": _strictly_causal,
    "clt": _cross_layer,
    "transcoder": _transcoder,
    "local_window": _local_window,
    "diff_sae": _difference,
    "custom": _custom,
}


def _laid_out(plans: list[_Plan], recipe: CrosscoderRecipe, widths: Mapping[str, int]) -> tuple[Group, ...]:
    """Groups one after another. Raises RecipeError for one that has no features, unknown sources or cannot be tied."""
    known = {**widths, **{name: widths[pair[0]] for name, pair in differences(recipe, widths).items()}}
    groups, first = [], 0
    for plan in plans:
        if plan.features < 1:
            raise RecipeError(f"crosscoder: group {plan.name!r} gets no feature. Set `features` higher.")
        for name in {*plan.reads, *plan.writes} - known.keys():
            raise RecipeError(f"crosscoder: group {plan.name!r} uses {name!r}. The sources are {', '.join(known)}.")
        if plan.tied and len({known[name] for name in plan.writes}) > 1:
            raise RecipeError(f"crosscoder: group {plan.name!r} cannot be tied, because its sources differ in width.")
        groups.append(Group(first=first, **vars(plan)))
        first += plan.features
    if len({group.name for group in groups}) < len(groups):
        raise RecipeError("crosscoder: two groups have the same name. Give each its own.")
    return tuple(groups)
