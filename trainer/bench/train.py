"""Bench of training: full steps against one dense product of all rows with all features."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from trainer.bench.machine import Machine
from trainer.bench.peers import peers
from trainer.bench.prerequisites import DEMO
from trainer.bench.repeats import Repeats, in_turns, ratios
from trainer.bench.report import Report, shown
from trainer.device import compute_dtype
from trainer.recipe.recipe import Recipe, load_recipe, parse_recipe
from trainer.run.peak_memory import forget_peak, peak_gigabytes
from trainer.store.store import ActivationStore, Rows, StoredSource, StoreWriter
from trainer.training.trainer import Training

WARM_UP = 3
"""Steps before the clock runs: memory is taken and the threshold found."""
CONCEPTS = 512
"""Directions that the synthetic activations are sparse mixtures of."""
BATCHES = 2
"""Batches of synthetic rows, used over and over."""


@dataclass(frozen=True)
class Setup:
    """What is trained."""

    variant: str
    widths: tuple[int, ...]
    features: int
    k: int
    batch: int


DEMO_WIDTHS = (576, 640)
SIZES = (
    Setup("standard", (576, 576), 4096, 32, 2048),
    Setup("standard", (576, 576), 16384, 64, 2048),
    Setup("dfc", (576, 576), 16384, 64, 2048),
    Setup("standard", (576, 576), 16384, 64, 4096),
    Setup("standard", (2304, 2304), 16384, 64, 2048),
)
"""Setups at which we are held against other trainers."""
PEERS = ("dictionary_learning", "dictionary_learning_bf16", "sparsify")


@dataclass(frozen=True)
class Speed:
    """How fast one setup trains."""

    setup: Setup
    rows_per_s: Repeats
    over_product: Repeats | None
    """Rows per second over those of the bare bf16 encoder product; None where bf16 has no fast product."""
    step_ms: Repeats
    product_ms: Repeats | None
    over_peers: dict[str, Repeats]
    """Rows per second over those of every peer that is here."""
    peak_gb: float


def bench_train(setups: tuple[Setup, ...] = (), *, rounds: int = 5) -> Report:
    """Train every setup for some steps and compare; without any, the demo's own and those of SIZES.

    Raises UsageError for a device that is not there and RecipeError for a setup that is no recipe.
    """
    machine = Machine()
    speeds = [speed_of(setup, rounds) for setup in setups or (demo_setup(), *SIZES)]
    notes = (
        "rows/s: whole steps on rows in memory, from normalising to Adam; no AuxK, as no feature is dead yet.",
        "over product: against the bare bf16 product of all sources with all features, in turns with the steps.",
        "Every turn is taken twice, and the second time counts: training is one step after another.",
        f"Median (least–most) of {rounds}. Torch uses {torch.get_num_threads()} threads.",
        _about_peers(speeds),
        machine.note(),
    )
    head = (
        *("variant", "widths", "features", "k", "batch", "rows/s", "over product", "over dictionary_learning"),
        *("the same in bf16", "over sparsify", "step ms", "product ms", "peak GB"),
    )
    figures = {"results": [_figures(speed) for speed in speeds]}
    return Report("Training", head, tuple(map(_row, speeds)), figures, notes)


def demo_setup() -> Setup:
    """What the demo's recipe trains."""
    recipe = load_recipe(DEMO)
    crosscoder = recipe.crosscoder
    return Setup(crosscoder.variant, DEMO_WIDTHS, crosscoder.features, crosscoder.sparsity.k, recipe.training.batch)


def speed_of(setup: Setup, rounds: int, *, with_peers: bool = True) -> Speed:
    """Time steps of one setup, the bare product and, if wanted, the peers that are here, in turns."""
    gc.collect()
    recipe = recipe_of(setup)
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        store = synthetic_store(Path(folder), setup)
        _forget_peak()
        training = Training(recipe, store)
        batches = _in_memory(training)
        for _ in range(WARM_UP):
            training.run_step(next(batches))
        peak = _peak_gigabytes(training.device)
        seconds = _in_turns(training, batches, setup, rounds, with_peers=with_peers)
    steps, products = seconds["step"], seconds.get("product")
    return Speed(
        setup,
        rows_per_s=Repeats.of([setup.batch / one for one in steps]),
        over_product=None if products is None else Repeats.of(ratios(products, steps)),
        step_ms=Repeats.of([1000 * one for one in steps]),
        product_ms=None if products is None else Repeats.of([1000 * one for one in products]),
        over_peers={name: Repeats.of(ratios(seconds[name], steps)) for name in PEERS if name in seconds},
        peak_gb=peak,
    )


def recipe_of(setup: Setup) -> Recipe:
    """A recipe for the setup, with the k of a training that has settled."""
    return parse_recipe(
        {
            "name": "bench",
            "crosscoder": {
                "variant": setup.variant,
                "features": setup.features,
                "sparsity": {"k": setup.k, "k_start": setup.k},
            },
            "training": {"batch": setup.batch, "epochs": 1_000},
        },
        origin="the bench",
    )


def synthetic_store(path: Path, setup: Setup) -> ActivationStore:
    """Rows that are sparse mixtures of random directions, alike in all sources."""
    generator = torch.Generator().manual_seed(0)
    rows = BATCHES * setup.batch
    codes = (torch.randn(rows, CONCEPTS, generator=generator) - 1.5).relu()
    names = [f"source{index}" for index in range(len(setup.widths))]
    sources = tuple(StoredSource(name, width) for name, width in zip(names, setup.widths, strict=True))
    writer = StoreWriter(path, sources)
    values: Rows = {}
    for source in sources:
        directions = torch.nn.functional.normalize(torch.randn(CONCEPTS, source.width, generator=generator), dim=1)
        noise = 0.01 * torch.randn(rows, source.width, generator=generator)
        values[source.name] = (codes @ directions + noise).bfloat16()
    writer.add(values, {}, "train")
    writer.finish(None, {})
    return ActivationStore.open(path)


def _in_memory(training: Training) -> Iterator[Rows]:
    """The store's batches without end; reading them is no part of a step."""
    return cycle(list(training.batches.epoch(0)))


def _in_turns(
    training: Training, batches: Iterator[Rows], setup: Setup, rounds: int, *, with_peers: bool
) -> dict[str, list[float]]:
    """Seconds of our steps, of the bare product and of the peers' steps, round by round."""
    device = training.device

    def step() -> None:
        training.run_step(next(batches))
        _wait(device)

    actions: dict[str, Any] = {"step": step}
    if compute_dtype(device) == torch.bfloat16:
        inputs = torch.randn(setup.batch, sum(setup.widths), device=device).bfloat16()
        weights = torch.randn(setup.features, sum(setup.widths), device=device).bfloat16()

        def product() -> None:
            torch.nn.functional.linear(inputs, weights)
            _wait(device)

        actions["product"] = product
    rows = training.crosscoder.normalise(next(batches))
    for name, peer in (peers(rows, features=setup.features, k=setup.k) if with_peers else {}).items():
        actions[name] = _waiting(peer, device)
    for name, action in actions.items():
        for _ in range(1 if name == "step" else WARM_UP):
            action()
    return in_turns(actions, rounds, again=True)


def _waiting(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    def whole() -> None:
        step()
        _wait(device)

    return whole


def _about_peers(speeds: list[Speed]) -> str:
    missing = [name for name in ("dictionary_learning", "sparsify") if not any(name in s.over_peers for s in speeds)]
    note = (
        "over a peer: rows/s of ours over those of its own whole step on the same rows, in turns; widths must be equal."
    )
    return f"{note} Not installed here: {', '.join(missing)}." if missing else note


def _wait(device: torch.device) -> None:
    """Until the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _forget_peak() -> None:
    forget_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_gigabytes()


def _figures(speed: Speed) -> dict[str, Any]:
    setup = speed.setup
    return {
        "variant": setup.variant,
        "widths": list(setup.widths),
        "features": setup.features,
        "k": setup.k,
        "batch": setup.batch,
        "rows_per_s": speed.rows_per_s.median,
        "over_encoder_product_bf16": None if speed.over_product is None else speed.over_product.median,
        **{f"over_{name}": speed.over_peers[name].median if name in speed.over_peers else None for name in PEERS},
        "peak_gb": speed.peak_gb,
    }


def _row(speed: Speed) -> tuple[str, ...]:
    setup = speed.setup
    widths = " + ".join(map(str, setup.widths))
    numbers = (f"{setup.features:,}", str(setup.k), f"{setup.batch:,}")
    over = [speed.over_peers.get(name) for name in PEERS]
    measured = (speed.rows_per_s, speed.over_product, *over, speed.step_ms, speed.product_ms, speed.peak_gb)
    return (setup.variant, widths, *numbers, *map(shown, measured))
