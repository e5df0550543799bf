"""FastAPI dependencies: settings, runs, results of a run, labels and generations."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request
from sqlalchemy import Engine

from app.database.write_queue import WriteQueue
from app.generations.live import LiveGenerations
from app.inference.client import Client
from app.labels.wording import NAME_COOKIE, name_from_cookie
from app.results.connection import Results, RunCatalog
from app.results.features.corpus_breakdown import corpus_shares
from app.results.features.feature_list import FeatureOrder, feature_order
from app.results.features.query import FeatureQuery
from app.results.features.search import Search, search_for
from app.results.once import Once
from app.results.owners import Owner, owners_of
from app.settings import Settings
from app.web.run_labels import LabelReader
from app.web.validators import page_tag

CACHED_ORDERS = 64
"""Ordered lists cached per run, for the links to the previous and the next feature."""


# Trivial dependencies are coroutines: FastAPI would run plain functions in another thread.
async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _catalog(request: Request) -> RunCatalog:
    catalog: RunCatalog = request.app.state.catalog
    return catalog


AppSettings = Annotated[Settings, Depends(_settings)]
Runs = Annotated[RunCatalog, Depends(_catalog)]


def _run_results(run: str, catalog: Runs) -> Iterator[Results]:
    results = catalog.results(run)
    try:
        yield results
    finally:
        results.cursor.close()


RunResults = Annotated[Results, Depends(_run_results)]
"""The results of `{run}` in the address, with a cursor of this request's own."""


def _other_results(other: str, catalog: Runs) -> Iterator[Results]:
    yield from _run_results(other, catalog)


OtherResults = Annotated[Results, Depends(_other_results)]
"""The results of `{other}` in the address."""


async def _label_reader(request: Request) -> LabelReader:
    reader: LabelReader = request.app.state.label_reader
    return reader


def _labels_engine(request: Request) -> Engine:
    engine: Engine = request.app.state.labels
    return engine


async def _live(request: Request) -> LiveGenerations:
    live: LiveGenerations = request.app.state.live
    return live


async def _client(request: Request) -> Client:
    client: Client = request.app.state.client
    return client


async def _engine(request: Request) -> Engine:
    return _labels_engine(request)


async def _writers(request: Request) -> WriteQueue:
    queue: WriteQueue = request.app.state.writers
    return queue


async def _visitor(request: Request) -> str:
    return name_from_cookie(request.cookies.get(NAME_COOKIE, ""))


LabelsEngine = Annotated[Engine, Depends(_engine)]
"""The database of labels and generations, for code that opens its own transactions."""
Writers = Annotated[WriteQueue, Depends(_writers)]
"""The queue of those who write labels."""
Visitor = Annotated[str, Depends(_visitor)]
"""Name the visitor signs with; empty until one was given. A cookie that is no name counts as none."""
Live = Annotated[LiveGenerations, Depends(_live)]
"""Generations in progress in this process."""
Inference = Annotated[Client, Depends(_client)]
"""Client of the inference worker."""


CurrentLabels = Annotated[LabelReader, Depends(_label_reader)]


@dataclass(frozen=True)
class RunRequest:
    """What a request for a run needs: results, query of the feature list, and labels."""

    run: str
    results: Results
    catalog: RunCatalog
    query: FeatureQuery
    labels: LabelReader

    @property
    def owners(self) -> dict[str, Owner]:
        """Every owner of features in the run."""
        return self.catalog.cached(self.run, "owners", owners_of)

    @property
    def corpus_shares(self) -> dict[str, dict[str, float]]:
        """Share of each corpus part and language in all rows analysed."""
        return self.catalog.cached(self.run, "corpus_shares", corpus_shares)

    def tag(self, request: Request) -> str:
        """The validator of a page about these results and labels. Raises NotModified if the client has it."""
        return page_tag(request, self.results.file, f"{self.labels.state(self.run)}.{self.labels.newest()}")

    def search(self) -> Search | None:
        """The search for the list's text; None when it has no text."""
        text, within = self.query.q.strip(), self.query.within
        if not text:
            return None
        labelled = self.labels.matching(self.run, text) if within in ("", "labels") else set()
        return search_for(self.results, text, within, labelled)

    def order(self) -> FeatureOrder:
        """The features of the list the reader came from, in its order; kept while no label changes what is found."""
        orders: Once[tuple[tuple[str, str], ...]]
        orders = self.catalog.cached(self.run, "orders", lambda _: Once(CACHED_ORDERS))
        state = self.labels.state(self.run) if self.query.q else ""
        key = (*self.query.pairs(page=1), ("labels", state))
        return orders.get(key, lambda: feature_order(self.results, self.query, self.search()))


async def _view(
    run: str, results: RunResults, catalog: Runs, query: Annotated[FeatureQuery, Query()], labels: CurrentLabels
) -> RunRequest:
    return RunRequest(run, results, catalog, query, labels)


RunView = Annotated[RunRequest, Depends(_view)]
