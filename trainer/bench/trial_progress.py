"""Shows the progress of one trial in the bench's own bar, and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainer.run.folder import RunFolder
from trainer.run.progress import Progress

Advance = Callable[[int], object]


class TrialProgress(Progress):
    """Counts the steps of the training in rows of the world; other tasks are silent."""

    def __init__(self, folder: RunFolder, rows: int, advance: Advance = lambda _: None) -> None:
        """`advance` is called with the rows done since its last call; they sum to `rows`, however many epochs."""
        super().__init__(folder, "toy")
        self._rows, self._advance = rows, advance
        self._steps, self._done, self._told = 0, 0, 0

    @contextmanager
    def task(
        self,
        message: str,
        *,
        total: int | None,
        unit: str = "rows",  # noqa: ARG002
        initial: int = 0,  # noqa: ARG002
    ) -> Iterator[Progress]:
        """A task without a progress bar of its own."""
        self._steps, self._done = total or 0 if message == "train" else 0, 0
        yield self

    def advance(self, done: int, **measures: float) -> None:  # noqa: ARG002
        """Pass on what was done."""
        if not self._steps:
            return
        self._done += done
        rows = self._rows * self._done // self._steps
        if self._done == self._steps or rows - self._told >= self._rows // 100:
            self._advance(rows - self._told)
            self._told = rows
