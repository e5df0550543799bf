"""Triton compiles every kernel to machine code as it is called; `test_fused.py` runs this in a process of its own.

The compiler needs no GPU. Calls are recorded on the CPU instead of being made.
"""

import os
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trainer.kernels import gpu, triton_kernels
from trainer.kernels.cpu import WeightBlock

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}
WIDTHS = (7, 576, 4096, gpu.WIDEST)

assert os.environ.get("TRITON_INTERPRET") != "1", "an interpreted kernel cannot be compiled"


@pytest.mark.parametrize("generation", [80, 90])
def test_every_kernel_becomes_machine_code(monkeypatch, tmp_path, generation):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    calls: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {}
    monkeypatch.setattr(gpu, "_works", lambda: True)
    monkeypatch.setattr(
        gpu,
        "_launch",
        lambda name, _, given, settings: calls.update({f"{name} {given} {settings}": (name, given, settings)}),
    )
    call_everything()

    made = {(name, *compiled_call(name, given, settings, generation)) for name, given, settings in calls.values()}

    assert {name for name, _, machine_code in made if machine_code} == {
        "weighted_sums",
        "pull_and_sums",
        "inner_products",
        "count_above",
        "write_above",
    }
    assert all(machine_code for *_, machine_code in made)
    assert all(shared <= 48 * 1024 for _, shared, _ in made), "every GPU has this much shared memory"


def call_everything() -> None:
    """Everything that `gpu` does, on tensors of every kind, in runs that are cut into pieces."""
    pairs, rows, features = 2 * gpu.LONGEST, 3, 4
    index = torch.zeros(pairs, dtype=torch.int64)
    runs = gpu.SegmentIndex(torch.tensor([0, 1, 2, 2, pairs]), index, pairs)
    for width in WIDTHS:
        for dtype in (torch.float32, torch.bfloat16):
            block = WeightBlock(
                torch.ones(rows, width, dtype=dtype), 0.5, torch.ones(features, width), torch.ones(features, width)
            )
            gpu.write_gradients(runs, torch.ones(pairs), [block, block], [block], torch.ones(features))
            gpu.inner_products(index, index, block.beside, block.weight, torch.ones(pairs))
            gpu.Search([torch.ones(rows, width, dtype=dtype)].__iter__, torch.ones(width, dtype=dtype), 1)


def compiled_call(name: str, given: tuple[Any, ...], settings: dict[str, Any], generation: int) -> tuple[int, bool]:
    """Bytes of shared memory that a kernel takes, and whether it became machine code.

    As in a call, the compiler is told of a whole number that is 1, and of places in memory and numbers that are
    multiples of 16.
    """
    kernel = getattr(triton_kernels, name)
    kinds = [NAMES[x.dtype] if isinstance(x, torch.Tensor) else "i32" if isinstance(x, int) else "fp32" for x in given]
    constants = {key: value for key, value in settings.items() if key in kernel.arg_names}
    constants |= {
        key: 1 for key, value in zip(kernel.arg_names, given, strict=False) if isinstance(value, int) and value == 1
    }
    signature = dict(zip(kernel.arg_names, kinds, strict=False)) | dict.fromkeys(constants, "constexpr")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, x in enumerate(given)
        if isinstance(x, torch.Tensor) or (isinstance(x, int) and x % 16 == 0)
    }
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", generation, 32),
        options={key: value for key, value in settings.items() if key not in constants},
    )
    return made.metadata.shared, bool(made.asm["cubin"])
