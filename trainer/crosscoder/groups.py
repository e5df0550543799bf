"""Lays out a variant's features in groups that read and write the same sources.

Every crosscoder variant is a list of groups. For a source that a group does not read or write there is no encoder or
decoder parameter, so that no masks are needed and no gradient can reach one.
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
    """Whether all sources it writes share one decoder."""
    k_factor: float = 1.0
    """Factor of its budget of active features."""
    penalty: float = 1.0
    """Factor of its sparsity penalty."""
    reconstructs: bool = True
    """Whether reconstructions contain what it writes; features of residual dictionaries beside a crosscoder only say
    where they fire."""

    @property
    def stop(self) -> int:
        """One past the index of the group's last feature."""
        return self.first + self.features


@dataclass(frozen=True)
class _Plan:
    """A group without its position in the dictionary."""

    name: str
    features: int
    reads: Names
    writes: Names
    tied: bool = False
    k_factor: float = 1.0
    penalty: float = 1.0


def build_groups(recipe: CrosscoderRecipe, widths: Mapping[str, int]) -> tuple[Group, ...]:
    """Groups of a recipe's variant over sources of these widths, in order.

    `standard` is the acausal crosscoder of Lindsey et al. 2024, `dfc` the Dedicated Feature Crosscoder of
    arXiv 2602.11729 for any number of sources, `designated_shared` the crosscoder of the 2025 model diffing update;
    layered variants take the sources as layers in order, and the groups of `residual` read what a training makes of
    their targets (see `trainer.crosscoder.residuals`). Raises RecipeError when the recipe and the sources do not fit
    together.
    """
    inputs, targets = recipe.inputs or tuple(widths), recipe.targets or tuple(widths)
    for name in {*inputs, *targets, *(name for subset in recipe.subsets for name in subset)} - widths.keys():
        raise RecipeError(f"crosscoder: no source is named {name!r}. The sources are {', '.join(widths)}.")
    plans = _PLANS[recipe.variant](recipe, inputs, targets, widths)
    return _place_groups(plans, recipe, widths)


def difference_sources(recipe: CrosscoderRecipe, widths: Mapping[str, int]) -> dict[str, tuple[str, str]]:
    """Sources that are the difference of two others: name to (minuend, subtrahend).

    Only `diff_sae` has such a source. Raises RecipeError unless there are two sources of one width.
    """
    if recipe.variant != "diff_sae":
        return {}
    if len(widths) != 2 or len(set(widths.values())) != 1:
        found = ", ".join(f"{name} (width {width})" for name, width in widths.items())
        raise RecipeError(f"crosscoder: diff_sae needs two sources of one width, and has {found}. Use dfc instead.")
    before, after = widths
    return {f"{after}-minus-{before}": (after, before)}


def residual_givens(inputs: Names, targets: Names) -> dict[str, Names]:
    """For `residual`, the sources that each target is predicted from: all others that are encoded."""
    given = {target: tuple(name for name in inputs if name != target) for target in targets}
    for target, others in given.items():
        if not others:
            raise RecipeError(f"crosscoder: residual has nothing to predict {target} from. Add another of `inputs`.")
    return given


def _standard(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _require_two_sources(recipe, inputs, targets)
    return [_Plan("shared", recipe.features, inputs, targets)]


def _sae(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    if len(inputs) != 1 or inputs != targets:
        raise RecipeError(f"crosscoder: {recipe.variant} has one source, and there are {', '.join(inputs)}. Use dfc.")
    return [_Plan(inputs[0], recipe.features, inputs, targets)]


def _dfc(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _require_two_sources(recipe, inputs, targets)
    sets = [(source,) for source in inputs] + [tuple(subset) for subset in recipe.subsets]
    dedicated = round(recipe.features * recipe.exclusive_share)
    shared = recipe.features - dedicated * len(sets)
    if dedicated < 1 or shared < 1:
        raise RecipeError(
            f"crosscoder: {recipe.features} features with an exclusive share of {recipe.exclusive_share} leave "
            f"{dedicated} for each of {len(sets)} groups and {shared} shared. Each group needs at least one."
        )
    return [_Plan("shared", shared, inputs, targets)] + [_Plan("+".join(s), dedicated, s, s) for s in sets]


def _designated_shared(
    recipe: CrosscoderRecipe, inputs: Names, targets: Names, widths: Mapping[str, int]
) -> list[_Plan]:
    _require_two_sources(recipe, inputs, targets)
    shared = max(1, round(recipe.features * recipe.shared_share))
    tied = len({widths[name] for name in targets}) == 1
    discount = {"k_factor": recipe.shared_k_factor, "penalty": recipe.shared_penalty}
    return [
        _Plan("shared", shared, inputs, targets, tied, **discount),
        _Plan("free", recipe.features - shared, inputs, targets),
    ]


def _weakly_causal(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    return _layer_groups(recipe, [((name,), targets[layer:]) for layer, name in enumerate(inputs)], inputs)


def _strictly_causal(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    # A layer's MLP output depends on the same layer's input; a residual stream only on earlier layers.
    offset = int(inputs == targets)
    spans = [((name,), targets[layer + offset :]) for layer, name in enumerate(inputs)]
    return _layer_groups(recipe, [span for span in spans if span[1]], inputs)


def _transcoder(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _require_paired_targets(recipe, inputs, targets)
    return _layer_groups(recipe, [((one,), (other,)) for one, other in zip(inputs, targets, strict=True)], inputs)


def _clt(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _require_paired_targets(recipe, inputs, targets)
    return _strictly_causal(recipe, inputs, targets, {})


def _local_window(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    spans = []
    for layer in range(len(inputs)):
        near = slice(max(0, layer - recipe.window), layer + recipe.window + 1)
        spans.append((inputs[near], targets[near]))
    return _layer_groups(recipe, spans, inputs)


def _diff_sae(recipe: CrosscoderRecipe, _: Names, __: Names, widths: Mapping[str, int]) -> list[_Plan]:
    (name,) = difference_sources(recipe, widths)
    return [_Plan(name, recipe.features, (name,), (name,))]


def _residual(recipe: CrosscoderRecipe, inputs: Names, targets: Names, _: Mapping[str, int]) -> list[_Plan]:
    _require_two_sources(recipe, inputs, targets)
    given = residual_givens(inputs, targets)
    # Each dictionary has a budget of k of its own: the factor undoes the division by their number.
    return [
        _Plan(
            f"{target}-given-{others[0] if len(others) == 1 else 'others'}",
            recipe.features,
            (target,),
            (target,),
            k_factor=len(given),
        )
        for target, others in given.items()
    ]


def _custom(recipe: CrosscoderRecipe, _: Names, __: Names, ___: Mapping[str, int]) -> list[_Plan]:
    if not recipe.groups:
        raise RecipeError("crosscoder: variant custom needs `groups`, a list of {name, features, reads, writes}.")
    return [_Plan(**group.model_dump()) for group in recipe.groups]


def _layer_groups(recipe: CrosscoderRecipe, spans: list[tuple[Names, Names]], inputs: Names) -> list[_Plan]:
    """Groups of equal size, one per layer, named after the layer's source."""
    size, rest = divmod(recipe.features, len(spans))
    return [
        _Plan(f"at-{inputs[index]}", size + (index < rest), reads, writes)
        for index, (reads, writes) in enumerate(spans)
    ]


def _require_two_sources(recipe: CrosscoderRecipe, inputs: Names, targets: Names) -> None:
    names = {*inputs, *targets}
    if len(names) < 2:
        raise RecipeError(
            f"crosscoder: {recipe.variant} compares sources, and there is only {', '.join(names)}. "
            "Add the other source, or set crosscoder.variant to sae."
        )


def _require_paired_targets(recipe: CrosscoderRecipe, inputs: Names, targets: Names) -> None:
    if inputs == targets or len(inputs) != len(targets):
        raise RecipeError(
            f"crosscoder: {recipe.variant} needs `inputs` and as many `targets` in layer order, for example "
            "inputs: [mlp-in-0, mlp-in-1] and targets: [mlp-out-0, mlp-out-1]."
        )


_PLANS = {
    "sae": _sae,
    "standard": _standard,
    "dfc": _dfc,
    "designated_shared": _designated_shared,
    "weakly_causal": _weakly_causal,
    "strictly_causal": _strictly_causal,
    "clt": _clt,
    "transcoder": _transcoder,
    "local_window": _local_window,
    "diff_sae": _diff_sae,
    "residual": _residual,
    "custom": _custom,
}


def _place_groups(plans: list[_Plan], recipe: CrosscoderRecipe, widths: Mapping[str, int]) -> tuple[Group, ...]:
    """Place groups one after another. Raises RecipeError for one that is empty, untieable or has unknown sources."""
    known = {**widths, **{name: widths[pair[0]] for name, pair in difference_sources(recipe, widths).items()}}
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
