"""Copies scalars from the GPU to the CPU in the background; only reading one waits for it."""

import torch
from torch import Tensor


class ScalarReadback:
    """A copy of a few numbers to the host, started now and read later."""

    def __init__(self, numbers: Tensor) -> None:
        """Numbers [n] of any dtype, or a single one []."""
        self._numbers, self._copied = numbers, None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.current_stream(numbers.device).record_event()

    def tolist(self) -> list[float]:
        """The numbers; waits for the copy if it is not complete."""
        numbers: list[float] = self._synchronised().tolist()
        return numbers

    def item(self) -> float:
        """The only number; waits for the copy if it is not complete."""
        return self._synchronised().item()

    def _synchronised(self) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers
