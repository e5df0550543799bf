"""Bench of scaling: what a row costs in training as features, k, width and batch grow, one at a time."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from trainer.bench.chart import Panel, svg
from trainer.bench.machine import Machine
from trainer.bench.report import Report, shown
from trainer.bench.train import Setup, Speed, speed_of
from trainer.run.folder import published

BASE = Setup("standard", (576, 576), 4096, 32, 1024)
AROUND: Mapping[str, tuple[int, ...]] = {
    "features": (1024, 2048, 4096, 8192, 16384),
    "k": (8, 16, 32, 64, 128),
    "width": (144, 288, 576, 1152, 2304),
    "batch": (256, 512, 1024, 2048, 4096),
}
"""What is varied, each by doubling; width is that of each of the two sources."""
MICROSECONDS = 1e3
TICK = 4
"""Ticks of the axis stand a factor of four apart."""


def bench_scaling(
    *, base: Setup = BASE, around: Mapping[str, tuple[int, ...]] = AROUND, rounds: int = 5, plot: Path | None = None
) -> Report:
    """Train every setup for some steps, with the bare bf16 product beside them; `plot` gets an SVG file.

    Raises UsageError for a device that is not there and RecipeError for a setup that is no recipe.
    """
    machine = Machine()
    known: dict[Setup, Speed] = {}
    speeds: dict[str, dict[int, Speed]] = {}
    for what, sizes in around.items():
        for size in sizes:
            setup = varied(base, what, size)
            if setup not in known:
                known[setup] = speed_of(setup, rounds, with_peers=False)
            speeds.setdefault(what, {})[size] = known[setup]
    if plot is not None:
        with published(plot) as draft:
            draft.write_text(drawn(speeds), encoding="utf-8")
    head = ("varied", "size", "rows/s", "µs per row", "product", "rest", "over product")
    rows = tuple(_row(what, size, speed) for what, line in speeds.items() for size, speed in line.items())
    widths = " + ".join(map(str, base.widths))
    notes = (
        f"Around {base.variant}, {widths}, {base.features:,} features, k {base.k}, batch {base.batch:,}.",
        "product: the bare bf16 encoder product; rest: everything else in a step. Both in microseconds per row.",
        f"Slopes, 1 being in proportion: {'; '.join(_slopes(what, line) for what, line in speeds.items())}.",
        f"Median (least–most) of {rounds}. Torch uses {torch.get_num_threads()} threads.",
        machine.note(),
    )
    figures = {
        "results": [_figures(what, size, speed) for what, line in speeds.items() for size, speed in line.items()]
    }
    return Report("Scaling of a training step", head, rows, figures, notes)


def varied(base: Setup, what: str, size: int) -> Setup:
    """The base with one size changed."""
    if what == "width":
        return replace(base, widths=(size,) * len(base.widths))
    changes: dict[str, Any] = {what: size}
    return replace(base, **changes)


def costs(speed: Speed) -> dict[str, float]:
    """Microseconds per row of a whole step and, where bf16 has a fast product, of the product and of the rest."""
    step = speed.step_ms.median * MICROSECONDS / speed.setup.batch
    if speed.product_ms is None:
        return {"whole step": step}
    product = speed.product_ms.median * MICROSECONDS / speed.setup.batch
    return {"whole step": step, "encoder product": product, "rest": step - product}


def drawn(speeds: Mapping[str, Mapping[int, Speed]]) -> str:
    """A panel for everything that is varied, both axes logarithmic: what grows in proportion rises at 45 degrees."""
    values = [cost for line in speeds.values() for speed in line.values() for cost in costs(speed).values() if cost > 0]
    low = math.floor(math.log(min(values), TICK))
    high = max(math.ceil(math.log(max(values), TICK)), low + 1)
    panels: list[Panel] = []
    for what, line in speeds.items():
        lines: dict[str, dict[int, tuple[float, ...]]] = {}
        for size, speed in line.items():
            for name, cost in costs(speed).items():
                lines.setdefault(name, {})[size] = (cost,)
        title = "microseconds per row" if not panels else ""
        panels.append(Panel(title, lines, top=float(TICK**high), bottom=float(TICK) ** low, x_title=what))
    return svg(panels, "")


def _row(what: str, size: int, speed: Speed) -> tuple[str, ...]:
    cost = costs(speed)
    measured = (speed.rows_per_s, cost["whole step"], cost.get("encoder product"), cost.get("rest"), speed.over_product)
    return (what, f"{size:,}", *map(shown, measured))


def _figures(what: str, size: int, speed: Speed) -> dict[str, object]:
    over = None if speed.over_product is None else speed.over_product.median
    return {"varied": what, "size": size, "rows_per_s": speed.rows_per_s.median, "over_encoder_product_bf16": over}


def _slopes(what: str, line: Mapping[int, Speed]) -> str:
    """How the costs of a row rise with one size."""
    if len(line) < 2:
        return f"{what} –"
    by_name: dict[str, dict[int, float]] = {}
    for size, speed in line.items():
        for name, cost in costs(speed).items():
            by_name.setdefault(name, {})[size] = max(cost, 1e-9)
    return f"{what} " + ", ".join(f"{slope(one):.2f} ({name})" for name, one in by_name.items())


def slope(line: Mapping[int, float]) -> float:
    """How steeply a cost rises on logarithmic axes between neighbours, in the middle: 1 is in proportion."""
    points = sorted(line.items())
    return median(math.log(b[1] / a[1]) / math.log(b[0] / a[0]) for a, b in pairwise(points))
