"""Shows the JSON interface, one operation after the other, from its OpenAPI description."""

from dataclasses import dataclass
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.web.templates import render

router = APIRouter(include_in_schema=False)

METHODS = ("get", "post", "put", "patch", "delete")
GENERAL = frozenset({"400", "403", "404", "413", "414", "421", "422"})
"""Statuses that every operation has; the page explains them once."""


BUSY = "Results or labels cannot be used now."
"""The description of 503 where an operation has none of its own."""


@dataclass(frozen=True)
class Parameter:
    """A parameter in an operation's address."""

    name: str
    location: str
    """path, query, header or cookie."""
    required: bool
    kind: str
    default: str
    description: str


@dataclass(frozen=True)
class Operation:
    """One method on one path."""

    anchor: str
    method: str
    path: str
    summary: str
    description: str
    parameters: tuple[Parameter, ...]
    fields: tuple[str, ...]
    """Fields of the body, where it takes one."""
    refusals: tuple[tuple[str, str], ...]
    """Status and meaning of its own error answers."""


@dataclass(frozen=True)
class DocsPage:
    """The JSON interface."""

    template: ClassVar[str] = "docs.html"
    fragments: ClassVar[dict[str, str]] = {}

    groups: dict[str, list[Operation]]
    """Operations by tag."""


@router.get("/api/docs")
def show_docs(request: Request) -> HTMLResponse:
    """Every operation of the JSON interface."""
    return render(request, DocsPage(operations(request.app.openapi())))


def operations(description: dict[str, Any]) -> dict[str, list[Operation]]:
    """The operations of an OpenAPI description, by tag."""
    groups: dict[str, list[Operation]] = {}
    for path, item in description["paths"].items():
        for method in METHODS:
            if method in item:
                tag = (item[method].get("tags") or ["other"])[0]
                groups.setdefault(tag, []).append(_operation(method, path, item[method], description))
    return groups


def _operation(method: str, path: str, entry: dict[str, Any], description: dict[str, Any]) -> Operation:
    return Operation(
        anchor=str(entry.get("operationId", f"{method}-{path}")),
        method=method.upper(),
        path=path,
        summary=str(entry.get("summary", "")),
        description=str(entry.get("description", "")),
        parameters=tuple(_parameter(each) for each in entry.get("parameters", [])),
        fields=_fields(entry, description),
        refusals=tuple(
            (status, str(answer.get("description", "")))
            for status, answer in sorted(entry.get("responses", {}).items())
            if status.isdigit() and int(status) >= 400 and status not in GENERAL and answer.get("description") != BUSY
        ),
    )


def _parameter(entry: dict[str, Any]) -> Parameter:
    schema = entry.get("schema", {})
    default = schema.get("default")
    return Parameter(
        name=entry["name"],
        location=entry["in"],
        required=bool(entry.get("required")),
        kind=_kind(schema),
        default="" if default in (None, "", []) else str(default),
        description=str(entry.get("description") or schema.get("description") or ""),
    )


def _kind(schema: dict[str, Any]) -> str:
    """A schema's type in a few words."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"] if each.get("type") != "null"))
    if schema.get("type") == "array":
        return f"{_kind(schema.get('items', {}))}, repeated"
    return str(schema.get("type", "any"))


def _fields(entry: dict[str, Any], description: dict[str, Any]) -> tuple[str, ...]:
    """Names and types of the body's fields."""
    for content in entry.get("requestBody", {}).get("content", {}).values():
        schema = content.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        schema = description.get("components", {}).get("schemas", {}).get(name, schema)
        return tuple(f"{field}: {_kind(inner)}" for field, inner in schema.get("properties", {}).items())
    return ()
