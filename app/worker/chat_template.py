"""Renders chat templates, which are programs that come with a model, in a process of their own with limits."""

import multiprocessing
import resource
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from trainer.errors import SourceError

START_LIMIT = 60.0
"""Seconds that the process may take to start."""
TIME_LIMIT = 10.0
"""Seconds that one prompt may take."""
MEMORY_LIMIT = 4 << 30
"""Bytes that the process may address."""
TEXT_LIMIT = 100_000
"""Characters that a template may make of a prompt."""


class TemplateRenderer:
    """Renders one prompt at a time; a template that exceeds a limit ends the process, and the next gets a new one."""

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def render(self, name: str, template: str, special_tokens: dict[str, Any], prompt: str) -> str:
        """The prompt as a user's turn, as `apply_chat_template` has it; `name` is the source's. Raises SourceError."""
        with self._lock:
            try:
                connection = self._connection or self._start()
                connection.send((template, special_tokens, prompt))
                problem, text = _received(connection, TIME_LIMIT)
            except (EOFError, OSError):  # a TimeoutError is one too
                self._end()
                problem, text = "takes too long or too much memory", ""
        if problem:
            remedy = "Turn the chat template off, or repair it beside the model."
            raise SourceError(f"{name}: the model's chat template {problem}. {remedy}")
        return text

    def _start(self) -> Connection:
        spawn = multiprocessing.get_context("spawn")
        self._connection, its = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(its,), daemon=True)
        self._process.start()
        its.close()
        _received(self._connection, START_LIMIT)
        return self._connection

    def _end(self) -> None:
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = self._connection = None


def _received(connection: Connection, seconds: float) -> tuple[str, str]:
    """What the process says: what is wrong, if anything, and the text."""
    if not connection.poll(seconds):
        raise TimeoutError
    problem, text = connection.recv()
    return problem, text


def _serve(connection: Connection) -> None:
    """In the process: render until the worker is gone."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    answer = ("", "")
    with suppress(EOFError, OSError):
        while True:
            connection.send(answer)
            template, special_tokens, prompt = connection.recv()
            _limit_seconds()
            try:
                texts, _ = render_jinja_template(
                    [[{"role": "user", "content": prompt}]],
                    chat_template=template,
                    add_generation_prompt=True,
                    **special_tokens,
                )
                answer = _checked(texts[0], prompt)
            except Exception as error:  # noqa: BLE001 - a template may raise anything
                said = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
                answer = f"cannot be rendered ({type(error).__name__}: {said})", ""


def _limit_seconds() -> None:
    """Should the worker be killed meanwhile, this process ends all the same."""
    with suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + 2 * TIME_LIMIT), hard))


def _checked(text: str, prompt: str) -> tuple[str, str]:
    if not text.strip():
        return "gives no text", ""
    if len(text) > TEXT_LIMIT:
        return f"makes {len(text):,} characters of a prompt of {len(prompt):,}", ""
    return "", text
