"""Overrides: `a.b=value`, put into the plain data of a recipe."""

from typing import Any

import yaml

from trainer.errors import RecipeError


def apply_override(data: dict[str, Any], override: str) -> None:
    """Put `a.b=value` into nested data; a number steps into a list."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"--set {override!r} has no value. Write it as --set crosscoder.features=4096.")
    *parents, last = path.split(".")
    place: Any = data
    try:
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place[int(last) if isinstance(place, list) else last] = yaml.safe_load(text)
    except (AttributeError, TypeError):
        raise RecipeError(f"--set {override!r} goes into something that is a value, not a section.") from None
    except (ValueError, IndexError):
        raise RecipeError(f"--set {override!r}: a list is stepped into by a number, 0 for its first entry.") from None
    except yaml.YAMLError:
        raise RecipeError(f"--set {override!r}: {text!r} is not a YAML value. Put it in quotes.") from None
