"""FastAPI dependencies: settings, runs, results of a run, labels and generations."""

import logging
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database.engine import transaction
from app.database.write_queue import WriteQueue
from app.errors import ReaderError
from app.generations.live import LiveGenerations
from app.inference.client import Client
from app.labels.panel import LabelsPanel, labels_panel
from app.labels.store import LabelTarget, features_matching, latest_labels
from app.labels.wording import NAME_COOKIE, name_from_cookie
from app.results.connection import Results, RunCatalog
from app.results.features.corpus_breakdown import corpus_shares
from app.results.features.feature_list import ordered_features
from app.results.features.query import FeatureQuery
from app.results.features.search import feature_with_index, features_peaking_on, features_with_text
from app.results.once import Once
from app.results.owners import Owner, owners_of
from app.settings import Settings

log = logging.getLogger("crossdiff.explorer")

CACHED_ORDERS = 64
"""Ordered lists cached per run, for the links to the previous and the next feature."""

Value = TypeVar("Value")
Default = TypeVar("Default")


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


@dataclass(frozen=True)
class LabelReader:
    """Reads labels for pages of results; an unreadable labels database yields none instead of an error."""

    engine: Engine

    def matching(self, run: str, text: str) -> set[int]:
        """Features with a current label that holds every word of the text."""
        return self._query(lambda session: features_matching(session, run, text), set())

    def latest(self, run: str, features: Collection[int]) -> dict[int, str]:
        """The newest current label of each of these features that has one."""
        return self._query(lambda session: latest_labels(session, run, features), {})

    def can_be_read(self) -> bool:
        """Whether the labels database responds."""
        return self._query(lambda session: latest_labels(session, "", [0]) is not None, False)

    def panel_and_names(
        self, target: LabelTarget, name: str, others: Collection[int]
    ) -> tuple[LabelsPanel | None, dict[int, str]]:
        """The labels panel of a feature for an author of this name, and newest labels of it and of others.

        (None, {}) when labels cannot be read.
        """

        def read(session: Session) -> tuple[LabelsPanel | None, dict[int, str]]:
            panel = labels_panel(session, target, name)
            return panel, latest_labels(session, target.run, {target.feature, *others})

        return self._query(read, (None, {}))

    def _query(self, read: Callable[[Session], Value], default: Default) -> Value | Default:
        try:
            with transaction(self.engine) as session:
                return read(session)
        except (SQLAlchemyError, ReaderError, OSError) as error:
            log.warning("labels cannot be read: %s", str(error))  # the text alone: the error holds its connection
            return default


async def _label_reader(request: Request) -> LabelReader:
    return LabelReader(_labels_engine(request))


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

    def matching(self) -> set[int] | None:
        """Features that the list's text matches; None when it has no text."""
        text = self.query.q.strip()
        if not text:
            return None
        searches: dict[str, Callable[[], set[int]]] = {
            "labels": lambda: self.labels.matching(self.run, text),
            "contexts": lambda: features_with_text(self.results, text),
            "peaks": lambda: features_peaking_on(self.catalog, self.run, text),
        }
        if self.query.within:
            return searches[self.query.within]()
        return feature_with_index(self.results, text).union(*(search() for search in searches.values()))

    def order(self) -> Sequence[int]:
        """Indexes of the features in the list the reader came from; lists without text are cached."""
        found = self.matching()
        if found is not None:
            return ordered_features(self.results, self.query, found)
        orders: Once[tuple[tuple[str, str], ...]]
        orders = self.catalog.cached(self.run, "orders", lambda _: Once(CACHED_ORDERS))
        key = tuple(self.query.pairs(page=1))
        return orders.get(key, lambda: array("i", ordered_features(self.results, self.query, None)))


async def _view(
    run: str, results: RunResults, catalog: Runs, query: Annotated[FeatureQuery, Query()], labels: CurrentLabels
) -> RunRequest:
    return RunRequest(run, results, catalog, query, labels)


RunView = Annotated[RunRequest, Depends(_view)]
