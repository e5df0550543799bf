"""Training steps of other sparse-dictionary libraries, for comparison where they are installed.

They are no dependencies: a peer that cannot be imported is left out of the table. No feature is dead yet, so no trainer
computes an auxiliary loss. Work outside the step itself, such as renormalising the decoder, is left out in the peer's
favour.
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
    """A training step of every installed peer on rows [R, W] of all sources; none when the sources' widths differ."""
    if len({x.shape[1] for x in rows.values()}) != 1:
        return {}
    stacked = torch.stack([x.float() for x in rows.values()], dim=1)
    makers: dict[str, Callable[[], Step]] = {
        "dictionary_learning": lambda: dictionary_learning(stacked, features=features, k=k, bf16=False),
        "dictionary_learning_bf16": lambda: dictionary_learning(stacked, features=features, k=k, bf16=True),
        "sparsify": lambda: sparsify(stacked.flatten(1), features=features, k=k),
    }
    steps = {}
    for name, make in makers.items():
        try:
            steps[name] = make()
        except ImportError:
            continue
    return steps


def dictionary_learning(x: Tensor, *, features: int, k: int, bf16: bool) -> Step:
    """One update of the BatchTopK crosscoder on x [R, sources, W]; as it ships, or under autocast if `bf16`.

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
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            trainer.update(state["step"], x)
        state["step"] += 1

    return step


def sparsify(x: Tensor, *, features: int, k: int) -> Step:
    """One step of a TopK SAE with sparse decoding on the concatenated sources x [R, sources * W], under bf16 autocast.

    Raises ImportError.
    """
    if x.device.type == "cpu":  # with Triton installed it would decode with Triton, which does not run on CPUs
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
