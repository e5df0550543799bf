"""Imported: the recipe of a run whose crosscoder another program trained, and that crosscoder read again.

The recipe says what the files say: sources, groups, what decides on firing. What they do not say, above all how the
crosscoder was trained, stands there as defaults and means nothing; `imported` in the recipe marks such a run.
"""

import hashlib
from pathlib import Path
from typing import Any

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import CrosscoderError
from trainer.interchange.formats import FORMATS, detect, read
from trainer.recipe.fitting import ImportedRecipe
from trainer.recipe.recipe import Recipe, parse_recipe

GROUP_SETTINGS = ("name", "features", "reads", "writes", "tied", "k_factor", "penalty")
"""What a recipe says of a group; its place in the dictionary follows."""


def recipe_of(
    path: Path,
    name: str,
    *,
    format: str | None = None,  # noqa: A002
    options: dict[str, Any],
    overrides: tuple[str, ...] = (),
) -> Recipe:
    """The recipe of a run around the checkpoint at a path; the format is recognised when not given.

    Raises CrosscoderError for a checkpoint that cannot be read exactly, RecipeError for a bad name or override.
    """
    crosscoder = read(path, format, **options)
    known = format or detect(path).name
    imported = {"path": str(path.absolute()), "format": known, "sha256": _sum(path, known), "options": options}
    data = {"name": name, "crosscoder": described(crosscoder), "imported": imported}
    return parse_recipe(data, origin=f"import of {path}", overrides=overrides)


def crosscoder_of(imported: ImportedRecipe) -> Crosscoder:
    """Read a checkpoint as it was read when its run was made.

    Raises CrosscoderError when it cannot be read, or is another one by now.
    """
    path = Path(imported.path)
    crosscoder = read(path, imported.format, **imported.options)
    if _sum(path, imported.format) != imported.sha256:
        raise CrosscoderError(f"{path} is not the file this run was made from. Import it as a run of its own.")
    return crosscoder


def described(crosscoder: Crosscoder) -> dict[str, Any]:
    """The recipe's section on a crosscoder, as far as the crosscoder itself tells."""
    everyone = crosscoder.sources
    whole = len(crosscoder.groups) == 1 and crosscoder.groups[0].reads == crosscoder.groups[0].writes == everyone
    groups = [{key: getattr(group, key) for key in GROUP_SETTINGS} for group in crosscoder.groups]
    thresholds = [bool(value.any()) for value in crosscoder.threshold.values()]
    if crosscoder.row_k:
        sparsity: dict[str, Any] = {"kind": "topk", "k": sum(crosscoder.row_k.values())}
    else:
        sparsity = {"kind": "batch_topk" if any(thresholds) else "l1"}
    return {
        "variant": "standard" if whole else "custom",
        "features": crosscoder.features,
        "groups": [] if whole else groups,
        "aggregation": crosscoder.aggregation,
        "sparsity": sparsity | {"rank_by": crosscoder.rank_by},
    }


def _sum(path: Path, format: str) -> str:  # noqa: A002
    """SHA-256 of the weights file, in hex."""
    find = FORMATS[format].find
    with ((find(path) if find else None) or path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
