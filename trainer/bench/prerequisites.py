"""Checks that models and texts of a bench are on this machine, so that no download is timed."""

from pathlib import Path

from trainer.errors import CorpusError, RecipeError, SourceError
from trainer.models.shapes import config_of
from trainer.pypi import archives
from trainer.recipe.recipe import Recipe
from trainer.run.folder import home

DEMO = Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"


def require_models(recipe: Recipe, path: Path) -> None:
    """Raise RecipeError without sources, or SourceError when a model is not on this machine; `path` is the recipe's."""
    if not recipe.sources:
        raise RecipeError(f"{path}: this bench runs models, but `sources` is empty. Give a recipe that has some.")
    for source in recipe.sources:
        if config_of(source) is None:
            raise SourceError(f"{source.name}: {source.model} is not on this machine. {_remedy(path)}")


def require_texts(recipe: Recipe, path: Path) -> None:
    """Raise RecipeError without a corpus, or CorpusError when a packaged text is not on this machine."""
    if recipe.corpus is None:
        raise RecipeError(f"{path}: this bench reads text, but `corpus` is missing. Give a recipe that has one.")
    for part in recipe.corpus.mix:
        address = part.path or ""
        if archives.is_address(address) and not archives.local_path(address, "corpora").is_file():
            raise CorpusError(f"{address} is not on this machine. {_remedy(path)}")


def _remedy(path: Path) -> str:
    return f"Fetch it with `crossdiff harvest {path}`, or set CROSSDIFF_HOME to the folder that has it (now {home()})."
