"""What is free on this machine for a run, and whether a run can fit at all."""

import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import psutil
import torch

from trainer.device import pick_device
from trainer.errors import DoesNotFit
from trainer.models.memory import free_bytes
from trainer.models.shapes import shape_of
from trainer.recipe.recipe import Recipe
from trainer.resources.fit import Available, fit_problems
from trainer.run.folder import home
from trainer.run.free_memory import free_memory, total_memory
from trainer.store.store import ActivationStore


def free_disk() -> int:
    """Free bytes on the disk where runs are written; the folder need not exist yet."""
    return int(psutil.disk_usage(str(nearest_folder(home()))).free)


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest parent that exists; a file if one stands in the way."""
    return next(one for one in (path, *path.parents) if os.path.lexists(one))


def free_resources(device: torch.device) -> Available:
    """Memory, disk and device memory that are free now, for a run on `device`."""
    return Available(free_memory(), free_disk(), free_bytes(device) if device.type == "cuda" else math.inf)


def whole_resources(device: torch.device) -> Available:
    """The same with no other program running; what is on the disk stays there."""
    on_device = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else math.inf
    return Available(total_memory(), free_disk(), on_device)


def check_fit(
    recipe: Recipe,
    stages: Collection[str],
    store: ActivationStore | None,
    *,
    warn: Callable[[str], None],
    anyway: bool = False,
    beside: Sequence[Recipe] = (),
) -> None:
    """Warn of stages that may run out of memory or disk by the estimates, which err.

    `store` is the run's, if it has one already; `beside` are recipes trained in the same process. Raises DoesNotFit
    for a stage that cannot fit by arithmetic, on this machine with nothing else running; with `anyway` that is a
    warning too. Accepts every recipe while the sizes of its models are unknown.
    """
    shapes = {source.name: shape for source in recipe.sources if (shape := shape_of(source)) is not None}
    if len(shapes) < len(recipe.sources) or recipe.imported is not None:
        return
    widths = {name: shape.width for name, shape in shapes.items()} if store is None else store.widths
    if not widths:
        return
    rows = None if store is None or recipe.harvest.stream is not None else store.count("train")
    device = pick_device(recipe.training.device)

    def problems(available: Available, *, least: bool) -> dict[str, str]:
        return fit_problems(recipe, shapes, widths, available, stages=stages, rows=rows, least=least, beside=beside)

    impossible = problems(whole_resources(device), least=True)
    if impossible and not anyway:
        raise DoesNotFit(f"{' '.join(impossible.values())} Add --anyway to try all the same.")
    for message in (problems(free_resources(device), least=False) | impossible).values():
        warn(f"warning: {message}")
