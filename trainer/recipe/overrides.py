"""Applies `a.b=value` overrides to the plain data of a recipe."""

from typing import Any

import yaml

from trainer.errors import RecipeError
from trainer.recipe.yaml_text import read_yaml


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in nested data, in place; a number indexes a list. Raises RecipeError."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"--set {override!r} has no value. Write it as --set crosscoder.features=4096.")
    *parents, last = path.split(".")
    container: Any = data
    try:
        for key in parents:
            container = container[int(key)] if isinstance(container, list) else container.setdefault(key, {})
        container[int(last) if isinstance(container, list) else last] = read_yaml(text)
    except (AttributeError, TypeError):
        raise RecipeError(f"--set {override!r} addresses a key inside a value that is not a section.") from None
    except (ValueError, IndexError):
        raise RecipeError(f"--set {override!r}: a list is indexed by a number, 0 for its first entry.") from None
    except yaml.YAMLError:
        raise RecipeError(f"--set {override!r}: {text!r} is not a YAML value. Put it in quotes.") from None
