"""HTTP connections of the explorer: slow, half-sent and too many ones do not keep others out."""

import asyncio
import functools
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 15.0
"""Seconds from the first byte of a request, or from the connection, until it must be there as a whole."""
READING_SECONDS = 60.0
"""Seconds that a client may take until it reads on."""
LARGEST_HEAD = 32 * 1024
"""Bytes of a request's first line and headers."""
KEEP_ALIVE_SECONDS = 65
"""Seconds that an idle connection stays open: longer than proxies keep theirs, so that they close first."""
RESERVED_FILES = 256
"""Open files that are left for results, the database and the worker."""


@functools.cache
def most_connections() -> int:
    """Connections that may be open at once, by the limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(min(soft, 10_000) - RESERVED_FILES, 64)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with an end to its patience.

    When there are too many connections, the oldest one that waits for a request makes room.
    """

    _request_timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        # In order of arrival: the server's own set has none.
        waiting: dict[PatientProtocol, None] = self.server_state.__dict__.setdefault("waiting", {})
        self._waiting = waiting
        self._wait_for_request()
        if len(self.connections) > most_connections() and waiting:
            next(iter(waiting)).give_up()

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request; its clock runs from the first part on."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait_for_request()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, without a clock of ours until it begins."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._waiting[self] = None

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        if self._reading_timer is None:
            self._reading_timer = self.loop.call_later(READING_SECONDS, self.give_up)

    def resume_writing(self) -> None:
        """The client has read on."""
        super().resume_writing()
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._stop_waiting()
        super().connection_lost(exc)
        self.resume_writing()

    def give_up(self) -> None:
        """Close the connection at once."""
        self._stop_waiting()
        self.transport.abort()

    def _wait_for_request(self) -> None:
        self._waiting[self] = None
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(REQUEST_SECONDS, self.give_up)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
