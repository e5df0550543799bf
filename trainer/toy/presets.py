"""Named toy worlds, each with the crosscoder variants and dictionary sizes to compare on it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.errors import UsageError
from trainer.toy.layers import layered_world
from trainer.toy.world import World, WorldPlan, random_world

LAYERS = 4
LAYERED_WIDTH = 128
STREAMS = [f"resid-{layer}" for layer in range(LAYERS)]
MLPS = [f"mlp-{layer}" for layer in range(LAYERS)]


@dataclass(frozen=True)
class Preset:
    """A world, and the crosscoders to train on it."""

    about: str
    """Description for the table's title."""
    concepts: int
    make: Callable[[int], World]
    """Makes the world of a seed."""
    sizes: tuple[int, ...]
    """Dictionary sizes."""
    variants: tuple[str, ...] = ("standard", "dfc", "designated_shared")
    per_variant: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of the recipe's crosscoder by variant."""


def preset(name: str, exclusive_share: float | None = None) -> Preset:
    """Look up a preset; `exclusive_share` replaces the share of concepts that one source alone holds.

    Raises UsageError for an unknown name, and for a share that the world cannot have.
    """
    if name == "layers":
        if exclusive_share is not None:
            raise UsageError("World 'layers' has no exclusive share: a concept is in its own layer and all later ones.")
        return _layers()
    if name not in PLANS:
        raise UsageError(f"No toy world is named {name!r}. There are {', '.join([*PLANS, 'layers'])}.")
    plan, sizes, about = PLANS[name]
    if exclusive_share is not None:
        if not 0 <= exclusive_share <= 1 - plan.pair_share:
            raise UsageError(f"An exclusive share of {exclusive_share} is not between 0 and {1 - plan.pair_share:.4g}.")
        plan = replace(plan, exclusive_share=exclusive_share)
    pairs = [[one, other] for at, one in enumerate(plan.sources) for other in plan.sources[at + 1 :]]
    return Preset(
        about,
        plan.concepts,
        lambda seed: random_world(plan, seed),
        sizes,
        per_variant={"dfc": {"subsets": pairs}} if plan.pair_share else {},
    )


PLANS: dict[str, tuple[WorldPlan, tuple[int, ...], str]] = {
    "paper": (
        WorldPlan(),
        (256, 512, 1024),
        "512 concepts in two sources of width 128, 5 % of them in one source only",
    ),
    "widths": (WorldPlan(widths=(128, 192)), (256, 512, 1024), "the same with widths 128 and 192"),
    "noisy": (
        WorldPlan(private_noise=0.5),
        (256, 512, 1024),
        "512 concepts in two sources, each with dense noise of its own, half as much as the concepts' variance",
    ),
    "pairs": (
        WorldPlan(widths=(128, 128, 128), exclusive_share=0.06, pair_share=0.06),
        (512, 1024),
        "512 concepts in three sources, 6 % of them in one source only and 6 % in two",
    ),
    "ample": (
        WorldPlan(concepts=450, exclusive_share=1 / 3),
        (4096,),
        "300 shared concepts and 75 in each source only, in a large dictionary (2025 diffing update)",
    ),
    "scarce": (
        WorldPlan(concepts=700, exclusive_share=2 / 7),
        (1024,),
        "500 shared concepts and 100 in each source only, in a small dictionary (2025 diffing update)",
    ),
}
"""Plan, dictionary sizes and description of every world but `layers`."""


def _layers() -> Preset:
    concepts = 512
    residual = {"inputs": STREAMS, "targets": STREAMS}
    outputs = {"inputs": STREAMS, "targets": MLPS}
    return Preset(
        f"{concepts} concepts that begin at one of {LAYERS} layers and persist",
        concepts,
        lambda seed: layered_world(concepts=concepts, width=LAYERED_WIDTH, layers=LAYERS, seed=seed),
        (512, 1024),
        ("standard", "weakly_causal", "clt"),
        per_variant={
            "standard": residual,
            "weakly_causal": residual,
            "local_window": residual,
            "strictly_causal": residual,
            "clt": outputs,
            "transcoder": outputs,
        },
    )
