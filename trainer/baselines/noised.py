"""Makes copies of a model with noise on its weights: what a model is like that differs from it in nothing to speak of.

Where two models predict differently, the question is whether more than elsewhere: some text is hard to predict, and any
change of the weights moves predictions there most. A noised copy that moves predictions as far, on the whole, as the
other model does shows how much of that each text gets by itself.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from trainer.models.decoder import find_body
from trainer.models.memory import free_bytes
from trainer.models.source import Source

FIRST_AMOUNT = 0.02
LARGEST_AMOUNT = 0.5
"""Noise of half the weights' own size leaves little of a model."""
ROUNDS = 2
"""Measurements until the amount is settled: divergence grows with its square while it is small."""
ROOM = 1.2
"""Free memory that a copy needs, over its size."""


class NoisedCopy:
    """A copy of a source's model whose noise can be drawn again."""

    def __init__(self, original: Source) -> None:
        """Copy the weights; they stay as they are until `draw`."""
        model = copy.deepcopy(original.model)
        body, blocks = find_body(original.name, model, original.layers)
        self.source = replace(original, model=model, body=body, blocks=blocks)
        self._original = original

    @torch.no_grad()
    def draw(self, amount: float, seed: int) -> Source:
        """Set every matrix to the original's plus Gaussian noise of `amount` times its standard deviation."""
        generator = torch.Generator().manual_seed(seed)
        weights = dict(self._original.model.named_parameters())
        for name, weight in self.source.model.named_parameters():
            original = weights[name]
            if not original.is_floating_point() or original.dim() < 2:
                continue
            noise = torch.randn(original.shape, generator=generator).to(original.device)
            weight.copy_(original.float() + amount * original.float().std() * noise)
        return self.source


def has_room(source: Source, *, copies: int) -> bool:
    """Whether some copies of a source's model fit into the free memory of its device."""
    size = sum(weight.numel() * weight.element_size() for weight in source.model.parameters())
    return bool(copies * size * ROOM < free_bytes(source.device))


def matching_amount(moved: Callable[[float], float], wanted: float) -> float:
    """The amount of noise that moves predictions by `wanted`; `moved` gives how far an amount moves them.

    At most LARGEST_AMOUNT, and the nearest of what was tried where the wanted is out of reach.
    """
    amount = FIRST_AMOUNT
    for _ in range(ROUNDS):
        found = moved(amount)
        if not found > 0:
            return LARGEST_AMOUNT
        amount = min(amount * (wanted / found) ** 0.5, LARGEST_AMOUNT)
    return amount
