"""Makes the recipe of a run around a crosscoder that another program trained.

The recipe has what the checkpoint defines: sources, groups and the rule for firing. Everything else, above all the
training, holds meaningless defaults; `imported` in the recipe marks such a run.
"""

from pathlib import Path
from typing import Any

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import CrosscoderError
from trainer.interchange.formats import FORMATS, detect, read
from trainer.recipe.fitting import ImportedRecipe
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.run.checksum import sha256_of

GROUP_SETTINGS = ("name", "features", "reads", "writes", "tied", "k_factor", "penalty")
"""Fields of a group in a recipe; its first feature follows from their order."""


def recipe_of(
    path: Path,
    name: str,
    *,
    format: str | None = None,  # noqa: A002
    options: dict[str, Any],
    overrides: tuple[str, ...] = (),
) -> Recipe:
    """Make the recipe of a run around the checkpoint at a path; the format is detected when not given.

    Raises CrosscoderError for a checkpoint that cannot be read exactly, RecipeError for a bad name or override.
    """
    crosscoder = read(path, format, **options)
    known = format or detect(path).name
    imported = {"path": str(path.absolute()), "format": known, "sha256": _sha256(path, known), "options": options}
    data = {"name": name, "crosscoder": recipe_section(crosscoder), "imported": imported}
    return parse_recipe(data, origin=f"import of {path}", overrides=overrides)


def crosscoder_of(imported: ImportedRecipe) -> Crosscoder:
    """Read the checkpoint of an imported run with the options of its import.

    Raises CrosscoderError when it cannot be read or has changed since.
    """
    path = Path(imported.path)
    crosscoder = read(path, imported.format, **imported.options)
    if _sha256(path, imported.format) != imported.sha256:
        raise CrosscoderError(f"{path} is not the file this run was made from. Import it as a run of its own.")
    return crosscoder


def recipe_section(crosscoder: Crosscoder) -> dict[str, Any]:
    """The recipe's section `crosscoder`, as far as the crosscoder defines it."""
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


def _sha256(path: Path, format: str) -> str:  # noqa: A002
    """SHA-256 of the weights file, in hex."""
    find = FORMATS[format].find
    return sha256_of((find(path) if find else None) or path)
