"""Each page's template uses exactly the names that its page declares."""

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import pytest
from jinja2 import Environment, meta, nodes

import app.main
import app.pages
from app.settings import Settings
from app.web.templates import make_environment

FRONTEND = Settings().frontend


def page_classes() -> list[type]:
    """Every dataclass of the app that names a template."""
    names = [f"app.pages.{module.name}" for module in pkgutil.iter_modules(app.pages.__path__)]
    modules = [*map(importlib.import_module, names), app.main]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "template")
    }
    return sorted(found, key=lambda page: page.__name__)


def names_used(environment: Environment, template: str) -> set[str]:
    """Names that a template takes from its context, those of its includes and of its layout counted in."""
    source, _, _ = environment.loader.get_source(environment, template)
    tree = environment.parse(source)
    imported = {name for one in tree.find_all(nodes.FromImport) for name in one.names}
    # Blocks do not see that the top of their file sets a name; the strict environment does when it renders.
    given = imported | {
        name.name for one in tree.find_all(nodes.Assign) for name in [one.target] if isinstance(name, nodes.Name)
    }
    looped = {
        name.name
        for one in tree.find_all(nodes.For)
        for name in (one.target, *one.target.find_all(nodes.Name))
        if isinstance(name, nodes.Name)
    }
    own = meta.find_undeclared_variables(tree) - given
    for other in tree.find_all((nodes.Include, nodes.Extends)):
        assert isinstance(other.template, nodes.Const), "templates are named, never computed"
        own |= names_used(environment, other.template.value) - given - looped
    return own - set(environment.globals)


@pytest.mark.parametrize("owner", page_classes(), ids=lambda owner: owner.__name__)
def test_a_page_declares_exactly_what_its_template_uses(owner: type):
    environment = make_environment(FRONTEND, "")

    assert names_used(environment, owner.template) == {field.name for field in dataclasses.fields(owner)}


@pytest.mark.parametrize("owner", page_classes(), ids=lambda owner: owner.__name__)
def test_a_fragment_uses_nothing_that_its_page_does_not_declare(owner: type):
    environment = make_environment(FRONTEND, "")

    for fragment in owner.fragments.values():
        assert names_used(environment, fragment) <= {field.name for field in dataclasses.fields(owner)}


def test_every_template_belongs_to_a_page():
    environment = make_environment(FRONTEND, "")
    reached: set[str] = set()
    waiting = [name for page in page_classes() for name in (page.template, *page.fragments.values())]
    waiting.append("_error.html")  # what HTMX gets of every error
    waiting.append("_generation_frame.html")  # what a stream of a generation sends
    while waiting:
        name = waiting.pop()
        reached.add(name)
        tree = environment.parse((FRONTEND / "templates" / name).read_text(encoding="utf-8"))
        found = {other.template.value for other in tree.find_all((nodes.Include, nodes.Extends, nodes.FromImport))}
        waiting += found - reached

    assert sorted(path.name for path in (FRONTEND / "templates").iterdir()) == sorted(reached)


def test_no_template_is_longer_than_100_lines_and_no_script_than_150():
    long = [
        path.name
        for folder, limit in (("templates", 100), ("static", 150))
        for path in Path(FRONTEND / folder).iterdir()
        if path.suffix in (".html", ".js") and len(path.read_text(encoding="utf-8").splitlines()) > limit
    ]

    assert long == []
