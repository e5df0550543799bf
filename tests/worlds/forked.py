"""Work in a forked process, which has torch imported already and may be killed."""

import multiprocessing
from typing import Any


def fork(work: Any, *arguments: Any) -> Any:
    """Begin the work in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process
