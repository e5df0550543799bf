"""Shortages: which stages of a run this machine has too little memory or disk for, and which settings would fit."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

from trainer.errors import RecipeError
from trainer.models.shapes import ModelShape
from trainer.recipe.fitting import StreamRecipe
from trainer.recipe.recipe import Recipe
from trainer.resources.estimate import StageCost, needs


@dataclass(frozen=True)
class Available:
    """What this machine has free, in bytes."""

    memory: float
    disk: float
    device: float = 0.0
    """On the GPU that trains."""


def lack(need: StageCost, room: Available) -> str | None:
    """What there is too little of for a stage: `memory`, `device`, `disk`, or nothing."""
    if need.memory - need.mapped > room.memory:
        return "memory"
    if need.device > room.device:
        return "device"
    return "disk" if need.disk > room.disk else None


def shortages(
    recipe: Recipe,
    shapes: Mapping[str, ModelShape],
    widths: Mapping[str, int],
    room: Available,
    *,
    stages: Collection[str] | None = None,
    rows: int | None = None,
) -> dict[str, str]:
    """Of every stage that cannot fit, all of them or some, what it lacks and which settings would fit."""

    def lacking(one: Recipe) -> dict[str, tuple[str, StageCost]]:
        left, found = room, {}
        for need in needs(one, shapes, widths, rows=rows):
            if stages is not None and need.stage not in stages:
                continue
            if kind := lack(need, left):
                found[need.stage] = (kind, need)
            if need.stage == "harvest":  # the store is there for all that follow
                left = replace(left, disk=left.disk - need.disk)
        return found

    def told(stage: str, kind: str, need: StageCost) -> str:
        def fits(one: Recipe) -> bool:
            with contextlib.suppress(RecipeError):  # too few features for the variant's groups, say
                return stage not in lacking(one)
            return False

        return f"{_amounts(kind, need, room)} {_advice(list(_smaller(recipe, fits)), kind)}"

    return {stage: told(stage, kind, need) for stage, (kind, need) in lacking(recipe).items()}


def _amounts(kind: str, need: StageCost, room: Available) -> str:
    amounts = {
        "memory": (need.memory - need.mapped, room.memory, "of memory"),
        "disk": (need.disk, room.disk, "of disk"),
        "device": (need.device, room.device, "of the GPU's memory"),
    }
    wanted, there, what = amounts[kind]
    return f"{need.stage} needs about {wanted / 1e9:.1f} GB {what} and {there / 1e9:.1f} GB are free."


def _advice(fitting: list[str], kind: str) -> str:
    if fitting:
        return f"What would fit: {', or '.join(fitting)}."
    return (
        "Free some, or set CROSSDIFF_HOME to a larger disk." if kind == "disk" else "Close programs, or compare less."
    )


def _smaller(recipe: Recipe, fits: Callable[[Recipe], bool]) -> Iterator[str]:
    """Settings that fit, each by itself: a smaller dictionary, fewer rows, a stream."""

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
    """The recipe with other values in one section."""
    part = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update={section: part})


def largest_fitting(value: int, fits: Callable[[int], bool]) -> int | None:
    """The largest of value / 2, value / 4, … that fits, or None when nothing above zero does."""
    halves = takewhile(bool, (value >> shift for shift in range(1, value.bit_length())))
    return next((half for half in halves if fits(half)), None)
