"""What a page may ask for: the settings, the runs on this machine, and the results of the run in its address."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request

from app.results.connection import Library, Results
from app.settings import Settings


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _library(request: Request) -> Library:
    library: Library = request.app.state.library
    return library


AppSettings = Annotated[Settings, Depends(_settings)]
Runs = Annotated[Library, Depends(_library)]


def _run_results(run: str, library: Runs) -> Iterator[Results]:
    results = library.results(run)
    try:
        yield results
    finally:
        results.cursor.close()


RunResults = Annotated[Results, Depends(_run_results)]
"""The results of `{run}` in the address, with a cursor of this request's own."""
