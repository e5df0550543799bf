"""constraints.txt pins everything that an installation of Crossdiff pulls in."""

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
EXTRAS = ("dev", "assets")
DECIDED_BY_TORCH = re.compile(r"^(nvidia-.*|cuda-.*|triton)$")
"""torch itself pins the CUDA libraries of its build, and only Linux has them."""


def test_everything_that_gets_installed_is_pinned_to_one_version():
    pins = read_pins()

    needed = {name for name in closure("crossdiff", EXTRAS) if not DECIDED_BY_TORCH.match(name)}

    assert sorted(needed - pins.keys()) == []


def test_every_pin_is_exact():
    loose = [line for line in pin_lines() if not re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*", line)]

    assert loose == []


def test_the_pins_satisfy_what_the_project_asks_for():
    pins = read_pins()

    unmet = [
        f"{requirement} is pinned to {pins[canonicalize_name(requirement.name)]}"
        for requirement in map(Requirement, importlib.metadata.requires("crossdiff") or [])
        if pins[canonicalize_name(requirement.name)] not in requirement.specifier
    ]

    assert unmet == []


def pin_lines() -> list[str]:
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    return [line for line in lines if line]


def read_pins() -> dict[str, str]:
    """Version by canonical name."""
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in pin_lines())}


def requirements_of(name: str) -> list[str]:
    """What a distribution asks for; nothing of one that is not installed (npm's wheel, where the system has npm)."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def closure(name: str, extras: tuple[str, ...]) -> set[str]:
    """Canonical names of everything that installing a distribution brings along on this machine."""
    found: set[str] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    seen = set(waiting)
    while waiting:
        current, extra = waiting.pop()
        for requirement in map(Requirement, requirements_of(current)):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            dependency = canonicalize_name(requirement.name)
            found.add(dependency)
            if DECIDED_BY_TORCH.match(dependency):
                continue
            entries = {(dependency, wanted) for wanted in ("", *requirement.extras)}
            waiting.extend(entries - seen)
            seen |= entries
    return found
