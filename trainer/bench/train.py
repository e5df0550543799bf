"""Times full training steps against one dense product of all rows with all features."""

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
from trainer.bench.repeats import Repeats, ratios, time_interleaved
from trainer.bench.report import Report, formatted
from trainer.device import compute_dtype
from trainer.recipe.recipe import Recipe, load_recipe, parse_recipe
from trainer.recipe.schedule import Schedule
from trainer.run.peak_memory import peak_gigabytes, reset_peak
from trainer.store.store import ActivationStore, Rows, StoredSource, StoreWriter
from trainer.training.trainer import Training

WARM_UP = 3
"""Untimed steps, in which memory is allocated and the threshold settles."""
CONCEPTS = 512
"""Random directions of which the synthetic activations are sparse mixtures."""
BATCHES = 2
"""Batches of synthetic rows, which are cycled."""


@dataclass(frozen=True)
class TrainSetup:
    """Sizes of a crosscoder and of its batches."""

    variant: str
    widths: tuple[int, ...]
    features: int
    k: int
    batch: int


DEMO_WIDTHS = (576, 640)
SIZES = (
    TrainSetup("standard", (576, 576), 4096, 32, 2048),
    TrainSetup("standard", (576, 576), 16384, 64, 2048),
    TrainSetup("dfc", (576, 576), 16384, 64, 2048),
    TrainSetup("standard", (576, 576), 16384, 64, 4096),
    TrainSetup("standard", (2304, 2304), 16384, 64, 2048),
)
"""Setups at which Crossdiff is compared with other trainers."""
PEERS = ("dictionary_learning", "dictionary_learning_bf16", "sparsify")


@dataclass(frozen=True)
class TrainSpeed:
    """Training speed of one setup."""

    setup: TrainSetup
    rows_per_s: Repeats
    over_product: Repeats | None
    """Rows per second over those of the bare bf16 encoder product; None where bf16 products are slow."""
    step_ms: Repeats
    product_ms: Repeats | None
    over_peers: dict[str, Repeats]
    """Rows per second over those of every installed peer."""
    peak_gb: float


def bench_train(setups: tuple[TrainSetup, ...] = (), *, rounds: int = 5) -> Report:
    """Time training steps of every setup against the bare product and the peers; by default the demo's and SIZES.

    Raises UsageError for a device that is not there and RecipeError for a setup that is no recipe.
    """
    machine = Machine()
    speeds = [measure_training(setup, rounds) for setup in setups or (demo_setup(), *SIZES)]
    notes = (
        "rows/s: whole steps on rows in memory, from normalising to Adam; no AuxK, as no feature is dead yet.",
        "over product: relative to the bare bf16 product of all sources with all features, timed interleaved.",
        "Everything runs twice in a row and the second run counts: training is one step after another.",
        f"Median (least–most) of {rounds}. Torch uses {torch.get_num_threads()} threads.",
        _peers_note(speeds),
        machine.note(),
    )
    head = (
        *("variant", "widths", "features", "k", "batch", "rows/s", "over product", "over dictionary_learning"),
        *("the same in bf16", "over sparsify", "step ms", "product ms", "peak GB"),
    )
    figures = {"results": [_figures(speed) for speed in speeds]}
    return Report("Training", head, tuple(map(_row, speeds)), figures, notes)


def demo_setup() -> TrainSetup:
    """The setup of the demo's recipe."""
    recipe = load_recipe(DEMO)
    crosscoder = recipe.crosscoder
    widths = dict(zip((source.name for source in recipe.sources), DEMO_WIDTHS, strict=True))
    batch = Schedule.of(recipe, recipe.harvest.rows, widths).batch
    return TrainSetup(crosscoder.variant, DEMO_WIDTHS, crosscoder.features, crosscoder.sparsity.k, batch)


def measure_training(setup: TrainSetup, rounds: int, *, with_peers: bool = True) -> TrainSpeed:
    """Times steps of one setup, interleaved with the bare product and, if wanted, the installed peers."""
    gc.collect()
    recipe = recipe_of(setup)
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        store = synthetic_store(Path(folder), setup)
        _reset_peak()
        training = Training(recipe, store)
        batches = _in_memory(training)
        for _ in range(WARM_UP):
            training.run_step(next(batches))
        peak = _peak_gigabytes(training.device)
        seconds = _time_rounds(training, batches, setup, rounds, with_peers=with_peers)
    steps, products = seconds["step"], seconds.get("product")
    return TrainSpeed(
        setup,
        rows_per_s=Repeats.from_values([setup.batch / duration for duration in steps]),
        over_product=None if products is None else Repeats.from_values(ratios(products, steps)),
        step_ms=Repeats.from_values([1000 * duration for duration in steps]),
        product_ms=None if products is None else Repeats.from_values([1000 * duration for duration in products]),
        over_peers={name: Repeats.from_values(ratios(seconds[name], steps)) for name in PEERS if name in seconds},
        peak_gb=peak,
    )


def recipe_of(setup: TrainSetup) -> Recipe:
    """A recipe for the setup, without annealing of k."""
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


def synthetic_store(path: Path, setup: TrainSetup) -> ActivationStore:
    """A store of rows that are sparse mixtures of random directions, with the same codes in all sources."""
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
    """Cycles through the store's batches in memory; reading them is no part of a step."""
    return cycle(list(training.batches.epoch(0)))


def _time_rounds(
    training: Training, batches: Iterator[Rows], setup: TrainSetup, rounds: int, *, with_peers: bool
) -> dict[str, list[float]]:
    """Seconds of our steps, of the bare product and of the peers' steps, by round."""
    device = training.device

    def step() -> None:
        training.run_step(next(batches))
        _synchronise(device)

    actions: dict[str, Any] = {"step": step}
    if compute_dtype(device) == torch.bfloat16:
        inputs = torch.randn(setup.batch, sum(setup.widths), device=device).bfloat16()
        weights = torch.randn(setup.features, sum(setup.widths), device=device).bfloat16()

        def product() -> None:
            torch.nn.functional.linear(inputs, weights)
            _synchronise(device)

        actions["product"] = product
    rows = training.crosscoder.normalise(next(batches))
    for name, peer in (peers(rows, features=setup.features, k=setup.k) if with_peers else {}).items():
        actions[name] = _synchronised(peer, device)
    for name, action in actions.items():
        for _ in range(1 if name == "step" else WARM_UP):
            action()
    return time_interleaved(actions, rounds, warm=True)


def _synchronised(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    def synchronised_step() -> None:
        step()
        _synchronise(device)

    return synchronised_step


def _peers_note(speeds: list[TrainSpeed]) -> str:
    missing = [name for name in ("dictionary_learning", "sparsify") if not any(name in s.over_peers for s in speeds)]
    note = (
        "over a peer: our rows/s over those of its own whole step on the same rows, interleaved; widths must be equal."
    )
    return f"{note} Not installed here: {', '.join(missing)}." if missing else note


def _synchronise(device: torch.device) -> None:
    """Waits for all queued work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _reset_peak() -> None:
    reset_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_gigabytes()


def _figures(speed: TrainSpeed) -> dict[str, Any]:
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


def _row(speed: TrainSpeed) -> tuple[str, ...]:
    setup = speed.setup
    widths = " + ".join(map(str, setup.widths))
    numbers = (f"{setup.features:,}", str(setup.k), f"{setup.batch:,}")
    over = [speed.over_peers.get(name) for name in PEERS]
    measured = (speed.rows_per_s, speed.over_product, *over, speed.step_ms, speed.product_ms, speed.peak_gb)
    return (setup.variant, widths, *numbers, *map(formatted, measured))
