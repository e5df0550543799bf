"""Finds stages that exceed this machine's memory or disk, and settings that would fit."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from trainer.errors import RecipeError
from trainer.models.shapes import ModelShape
from trainer.recipe.fitting import StreamRecipe
from trainer.recipe.recipe import Recipe
from trainer.resources.estimate import StageCost, side_by_side, stage_costs


@dataclass(frozen=True)
class Available:
    """Free resources of this machine, in bytes."""

    memory: float
    disk: float
    device: float = 0.0
    """On the GPU that trains."""


def exceeded_resource(cost: StageCost, available: Available) -> str | None:
    """The resource that a stage exceeds: `memory`, `device`, `disk` or None."""
    if cost.memory - cost.mapped > available.memory:
        return "memory"
    if cost.device > available.device:
        return "device"
    return "disk" if cost.disk > available.disk else None


def fit_problems(
    recipe: Recipe,
    shapes: Mapping[str, ModelShape],
    widths: Mapping[str, int],
    available: Available,
    *,
    stages: Collection[str] | None = None,
    rows: int | None = None,
    least: bool = False,
    beside: Sequence[Recipe] = (),
) -> dict[str, str]:
    """By stage that does not fit, a message with the exceeded resource and settings that would fit.

    `stages` limits the check. With `least`, only what arithmetic alone says counts. `beside` are recipes that are
    trained in the same process. The other arguments are those of `stage_costs`.
    """
    others = (stage_costs(other, shapes, widths, rows=rows) for other in beside)
    trained_beside = [cost for stages_of_other in others for cost in stages_of_other if cost.stage == "train"]

    def costs(candidate: Recipe) -> Iterator[StageCost]:
        for cost in stage_costs(candidate, shapes, widths, rows=rows):
            whole = side_by_side([cost, *trained_beside]) if cost.stage == "train" else cost
            yield whole.by_arithmetic() if least else whole

    def exceeding(candidate: Recipe) -> dict[str, tuple[str, StageCost]]:
        left, exceeded = available, {}
        for cost in costs(candidate):
            if stages is not None and cost.stage not in stages:
                continue
            if resource := exceeded_resource(cost, left):
                exceeded[cost.stage] = (resource, cost)
            if cost.stage == "harvest":  # its store stays on disk for the later stages
                left = replace(left, disk=left.disk - cost.disk)
        return exceeded

    def explain(stage: str, resource: str, cost: StageCost) -> str:
        def fits(candidate: Recipe) -> bool:
            with contextlib.suppress(RecipeError):  # for example, too few features for the variant's groups
                return stage not in exceeding(candidate)
            return False

        advice = _advice(list(_fitting_settings(recipe, fits)), resource)
        return f"{_amounts(resource, cost, available, least=least)} {advice}"

    return {stage: explain(stage, resource, cost) for stage, (resource, cost) in exceeding(recipe).items()}


def _amounts(resource: str, cost: StageCost, available: Available, *, least: bool) -> str:
    amounts = {
        "memory": (cost.memory - cost.mapped, available.memory, "of memory"),
        "disk": (cost.disk, available.disk, "of disk"),
        "device": (cost.device, available.device, "of the GPU's memory"),
    }
    needed, free, what = amounts[resource]
    if not least:
        return f"{cost.stage} needs about {_size(needed)} {what} and {_size(free)} are free."
    return f"{cost.stage} needs at least {_size(needed)} {what}, and there are {_size(free)}."


def _size(count: float) -> str:
    """Bytes in words; a size below 0.1 GB in MB, so that what is needed is never shown as zero."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _advice(fitting: list[str], resource: str) -> str:
    if fitting:
        return f"What would fit: {', or '.join(fitting)}."
    return (
        "Free some, or set CROSSDIFF_HOME to a larger disk."
        if resource == "disk"
        else "Close programs, or compare fewer models."
    )


def _fitting_settings(recipe: Recipe, fits: Callable[[Recipe], bool]) -> Iterator[str]:
    """Settings that each fit alone: a smaller dictionary, fewer rows, a stream."""

    def features(count: int) -> Recipe:
        return _changed(recipe, "crosscoder", features=count)

    def rows(count: int) -> Recipe:
        return _changed(recipe, "harvest", rows=count)

    if count := largest_fitting(recipe.crosscoder.features, lambda size: fits(features(size))):
        yield f"crosscoder.features={count}"
    if count := largest_fitting(recipe.harvest.rows, lambda size: fits(rows(size))):
        yield f"harvest.rows={count}"
    if recipe.harvest.stream is None and not recipe.sweep:
        once = _changed(recipe, "training", epochs=1)
        if fits(_changed(once, "harvest", stream=StreamRecipe())):
            yield "harvest.stream={} with training.epochs=1"


def _changed(recipe: Recipe, section: str, **values: object) -> Recipe:
    """A copy of the recipe with changed values in one section."""
    part = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update={section: part})


def largest_fitting(value: int, fits: Callable[[int], bool]) -> int | None:
    """The largest of value // 2, value // 4, … above zero that fits, or None."""
    halves = takewhile(bool, (value >> shift for shift in range(1, value.bit_length())))
    return next((half for half in halves if fits(half)), None)
