"""Triton compiles every kernel to machine code for each kind of call; `test_gpu.py` runs this file in its own process.

The compiler needs no GPU. Launches are recorded on the CPU and not executed.
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
WIDTHS = (7, 576, 4096, gpu.MAX_WIDTH)

assert os.environ.get("TRITON_INTERPRET") != "1", "an interpreted kernel cannot be compiled"


@pytest.mark.parametrize("generation", [80, 90])
def test_every_kernel_becomes_machine_code(monkeypatch, tmp_path, generation):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    calls: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {}
    monkeypatch.setattr(gpu, "_works", lambda: True)
    monkeypatch.setattr(
        gpu,
        "_launch",
        lambda name, _, arguments, settings: calls.update(
            {f"{name} {arguments} {settings}": (name, arguments, settings)}
        ),
    )
    call_everything()

    compiled = {(call[0], *compiled_call(*call, generation)) for call in calls.values()}

    assert {name for name, _, machine_code in compiled if machine_code} == {
        "weighted_sums",
        "decoder_gradients",
        "inner_products",
        "count_above",
        "write_above",
    }
    assert all(machine_code for *_, machine_code in compiled)
    assert all(shared <= 48 * 1024 for _, shared, _ in compiled), "every GPU has this much shared memory"


def call_everything() -> None:
    """Call every operation of `gpu` on tensors of every dtype and width, with segments that are split."""
    pairs, rows, features = 2 * gpu.MAX_SEGMENT, 3, 4
    index = torch.zeros(pairs, dtype=torch.int64)
    segments = gpu.SegmentIndex(torch.tensor([0, 1, 2, 2, pairs]), index, pairs)
    for width in WIDTHS:
        for dtype in (torch.float32, torch.bfloat16):
            block = WeightBlock(
                torch.ones(rows, width, dtype=dtype), 0.5, torch.ones(features, width), torch.ones(features, width)
            )
            gpu.write_gradients(segments, torch.ones(pairs), [block, block], [block], torch.ones(features))
            gpu.inner_products(index, index, block.vectors, block.weight, torch.ones(pairs))
            gpu.EntrySearch([torch.ones(rows, width, dtype=dtype)].__iter__, torch.ones(width, dtype=dtype), 1)


def compiled_call(name: str, arguments: tuple[Any, ...], settings: dict[str, Any], generation: int) -> tuple[int, bool]:
    """Bytes of shared memory that a kernel uses, and whether it was compiled to machine code.

    As in a launch, it is specialised on integers equal to 1, and on addresses and integers divisible by 16.
    """
    kernel = getattr(triton_kernels, name)
    kinds = [
        NAMES[x.dtype] if isinstance(x, torch.Tensor) else "i32" if isinstance(x, int) else "fp32" for x in arguments
    ]
    constants = {key: value for key, value in settings.items() if key in kernel.arg_names}
    constants |= {
        key: 1 for key, value in zip(kernel.arg_names, arguments, strict=False) if isinstance(value, int) and value == 1
    }
    signature = dict(zip(kernel.arg_names, kinds, strict=False)) | dict.fromkeys(constants, "constexpr")
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, x in enumerate(arguments)
        if isinstance(x, torch.Tensor) or (isinstance(x, int) and x % 16 == 0)
    }
    kernel_code = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", generation, 32),
        options={key: value for key, value in settings.items() if key not in constants},
    )
    return kernel_code.metadata.shared, bool(kernel_code.asm["cubin"])
