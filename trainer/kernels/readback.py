"""Reply: numbers that a device was asked for, on their way to Python, so that only who needs them waits for it."""

import torch
from torch import Tensor


class ScalarReadback:
    """A copy of a few numbers that begins now and is read later."""

    def __init__(self, numbers: Tensor) -> None:
        """Numbers [n] of any kind, or one []."""
        self._numbers, self._arrival = numbers, None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrival = torch.cuda.current_stream(numbers.device).record_event()

    def numbers(self) -> list[float]:
        """The numbers, waited for if they are not there yet."""
        found: list[float] = self._arrived().tolist()
        return found

    def number(self) -> float:
        """The only number, waited for if it is not there yet."""
        return self._arrived().item()

    def _arrived(self) -> Tensor:
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._numbers
