"""Peers: other trainers of the same thing, where they can be imported, each as one whole step on rows in memory.

They are no dependencies: a peer that cannot be imported is left out of the table. No feature is dead yet, so auxiliary
losses rest in all of them; what a peer does beside the step itself, such as renormalising its decoder, is left out in
its favour.
"""

import os
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from trainer.store.store import Rows

Step = Callable[[], None]
LEARNING_RATE = 3e-4


def peers(rows: Rows, *, features: int, k: int) -> dict[str, Step]:
    """A step of every peer that is here and can train on rows [R, W] of all sources: their widths must be equal."""
    if len({x.shape[1] for x in rows.values()}) != 1:
        return {}
    stacked = torch.stack([x.float() for x in rows.values()], dim=1)
    makers: dict[str, Callable[[], Step]] = {
        "dictionary_learning": lambda: dictionary_learning(stacked, features=features, k=k, low=False),
        "dictionary_learning_bf16": lambda: dictionary_learning(stacked, features=features, k=k, low=True),
        "sparsify": lambda: sparsify(stacked.flatten(1), features=features, k=k),
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError:
            continue
    return found


def dictionary_learning(x: Tensor, *, features: int, k: int, low: bool) -> Step:
    """One update of the BatchTopK crosscoder on x [R, sources, W]; as it ships, or under bf16 autocast if `low`.

    Raises ImportError.
    """
    module = import_module("dictionary_learning.trainers.crosscoder")
    _, sources, width = x.shape
    trainer = module.BatchTopKCrossCoderTrainer(
        steps=10**6,
        activation_dim=width,
        dict_size=features,
        k=k,
        layer=0,
        lm_name="none",
        num_layers=sources,
        lr=LEARNING_RATE,
        warmup_steps=1,
        threshold_start_step=0,
        seed=0,
        device=str(x.device),
    )
    state = {"step": 0}

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            trainer.update(state["step"], x)
        state["step"] += 1

    return step


def sparsify(x: Tensor, *, features: int, k: int) -> Step:
    """One step of a TopK SAE with sparse decoding on the sources side by side, x [R, sources * W], under bf16 autocast.

    Raises ImportError.
    """
    if x.device.type == "cpu":  # with Triton installed it would decode by it, which a CPU cannot
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    config = import_module("sparsify.config").SparseCoderConfig(num_latents=features, k=k)
    coder = import_module("sparsify.sparse_coder").SparseCoder(x.shape[1], config, device=x.device)
    optimiser = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = coder(x).fvu
        loss.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimiser.step()

    return step
