"""Measures the training cost of a row as features, k, width and batch grow, one at a time."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from trainer.bench.machine import Machine
from trainer.bench.report import Report, formatted
from trainer.bench.train import TrainSetup, TrainSpeed, measure_training

BASE = TrainSetup("standard", (576, 576), 4096, 32, 1024)
VARIATIONS: Mapping[str, tuple[int, ...]] = {
    "features": (1024, 2048, 4096, 8192, 16384),
    "k": (8, 16, 32, 64, 128),
    "width": (144, 288, 576, 1152, 2304),
    "batch": (256, 512, 1024, 2048, 4096),
}
"""Values of each varied size, by doubling; `width` is that of each of the two sources."""
MICROSECONDS = 1e3


def bench_scaling(
    *, base: TrainSetup = BASE, variations: Mapping[str, tuple[int, ...]] = VARIATIONS, rounds: int = 5
) -> Report:
    """Time training steps of every setup, interleaved with the bare bf16 encoder product.

    Raises UsageError for a device that is not there and RecipeError for a setup that is no recipe.
    """
    machine = Machine()
    measured: dict[TrainSetup, TrainSpeed] = {}
    speeds: dict[str, dict[int, TrainSpeed]] = {}
    for parameter, sizes in variations.items():
        for size in sizes:
            setup = varied(base, parameter, size)
            if setup not in measured:
                measured[setup] = measure_training(setup, rounds, with_peers=False)
            speeds.setdefault(parameter, {})[size] = measured[setup]
    head = ("varied", "size", "rows/s", "µs per row", "product", "rest", "over product")
    rows = tuple(
        _row(parameter, size, speed) for parameter, by_size in speeds.items() for size, speed in by_size.items()
    )
    widths = " + ".join(map(str, base.widths))
    slopes = "; ".join(_slopes(parameter, by_size) for parameter, by_size in speeds.items())
    notes = (
        f"Around {base.variant}, {widths}, {base.features:,} features, k {base.k}, batch {base.batch:,}.",
        "product: the bare bf16 encoder product; rest: everything else in a step. Both in microseconds per row.",
        f"Slopes on logarithmic axes, 1 being proportional: {slopes}.",
        f"Median (least–most) of {rounds}. Torch uses {torch.get_num_threads()} threads.",
        machine.note(),
    )
    figures = {
        "results": [
            _figures(parameter, size, speed) for parameter, by_size in speeds.items() for size, speed in by_size.items()
        ]
    }
    return Report("Scaling of a training step", head, rows, figures, notes)


def varied(base: TrainSetup, parameter: str, size: int) -> TrainSetup:
    """The base with one size changed."""
    if parameter == "width":
        return replace(base, widths=(size,) * len(base.widths))
    changes: dict[str, Any] = {parameter: size}
    return replace(base, **changes)


def costs(speed: TrainSpeed) -> dict[str, float]:
    """Microseconds per row of a whole step; where bf16 is fast, also of the encoder product and of the rest."""
    step = speed.step_ms.median * MICROSECONDS / speed.setup.batch
    if speed.product_ms is None:
        return {"whole step": step}
    product = speed.product_ms.median * MICROSECONDS / speed.setup.batch
    return {"whole step": step, "encoder product": product, "rest": step - product}


def _row(parameter: str, size: int, speed: TrainSpeed) -> tuple[str, ...]:
    cost = costs(speed)
    measured = (speed.rows_per_s, cost["whole step"], cost.get("encoder product"), cost.get("rest"), speed.over_product)
    return (parameter, f"{size:,}", *map(formatted, measured))


def _figures(parameter: str, size: int, speed: TrainSpeed) -> dict[str, object]:
    over = None if speed.over_product is None else speed.over_product.median
    return {"varied": parameter, "size": size, "rows_per_s": speed.rows_per_s.median, "over_encoder_product_bf16": over}


def _slopes(parameter: str, by_size: Mapping[int, TrainSpeed]) -> str:
    """Slopes of all costs of a row over one size, as text."""
    if len(by_size) < 2:
        return f"{parameter} –"
    by_name: dict[str, dict[int, float]] = {}
    for size, speed in by_size.items():
        for name, cost in costs(speed).items():
            by_name.setdefault(name, {})[size] = max(cost, 1e-9)
    return f"{parameter} " + ", ".join(f"{slope(line):.2f} ({name})" for name, line in by_name.items())


def slope(costs_by_size: Mapping[int, float]) -> float:
    """Median slope of the cost between neighbouring sizes on logarithmic axes; 1 is proportional."""
    points = sorted(costs_by_size.items())
    return median(math.log(b[1] / a[1]) / math.log(b[0] / a[0]) for a, b in pairwise(points))
