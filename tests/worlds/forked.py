"""Runs a function in a forked process, which has torch imported already and may be killed."""

import multiprocessing
from typing import Any


def fork(work: Any, *arguments: Any) -> Any:
    """Start the function in a separate process."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process
