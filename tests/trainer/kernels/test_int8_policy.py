"""When int8 search is used: the processor, the libraries, whether its kernel works, and the product itself."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch

from trainer.kernels import cpu, int8_search
from trainer.kernels.int8_search import Int8Search, TileShape

AVX512, AVX = TileShape(16, 12), TileShape(8, 6)


@pytest.fixture
def processor(monkeypatch) -> Iterator[Callable[..., None]]:
    """Sets the instruction sets that the processor has."""
    import llvmlite.binding

    def has(*names: str) -> None:
        monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: dict.fromkeys(names, True))
        int8_search.preferred_tile.cache_clear()

    yield has
    monkeypatch.undo()
    int8_search.preferred_tile.cache_clear()


@pytest.fixture
def nothing_compiled(monkeypatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(int8_search, "_checked_kernel", cache(int8_search._checked_kernel.__wrapped__))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (["avx512vnni", "avx512vl", "fma"], AVX512),
        (["avxvnni", "fma"], AVX),
        (["avx2", "fma"], None),
        (["avx512vnni", "fma"], None),
    ],
)
def test_the_processor_decides_the_tile(processor, features, expected):
    processor(*features)

    assert int8_search.processor_tile() == expected
    assert int8_search.preferred_tile() == expected


def test_a_processor_with_amx_could_but_need_not(processor):
    processor("avx512vnni", "avx512vl", "amx-bf16")

    assert int8_search.processor_tile() == AVX512
    assert int8_search.preferred_tile() is None
    assert int8_search.tile_shape() is None


def test_a_processor_that_llvm_does_not_know_has_no_tile(monkeypatch):
    import llvmlite.binding

    def unknown():
        raise RuntimeError

    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", unknown)

    assert int8_search.processor_tile() is None


def test_code_for_another_processor_has_no_tile(processor, monkeypatch):
    import numba

    processor("avx512vnni", "avx512vl")
    monkeypatch.setattr(numba.config, "CPU_NAME", "generic")

    assert int8_search.processor_tile() is None


@pytest.mark.parametrize("missing", ["numba", "llvmlite.binding"])
def test_without_numba_or_with_a_broken_one_there_is_no_tile(processor, monkeypatch, missing):
    processor("avx512vnni", "avx512vl")
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, missing, None)
        assert int8_search.processor_tile() is None
    monkeypatch.setattr(cpu, "available", lambda: False)

    assert int8_search.processor_tile() is None


def test_small_dictionaries_and_other_dtypes_are_not_searched_in_int8(monkeypatch):
    monkeypatch.setattr(int8_search, "tile_shape", lambda: AVX512)
    large, small = torch.zeros(1024, 1024), torch.zeros(1024, 1023)

    assert int8_search.usable([torch.zeros(1, 1024)], [large])
    assert not int8_search.usable([torch.zeros(1, 1023)], [small])
    assert not int8_search.usable([torch.zeros(1, 1024).bfloat16()], [large.bfloat16()])


@pytest.mark.parametrize("tile", [AVX512, AVX], ids=["512 bits", "256 bits"])
def test_the_kernel_works_with_the_installed_libraries(nothing_compiled, caplog, tile):
    widest = int8_search.processor_tile()
    if widest is None or tile.lanes > widest.lanes:
        pytest.skip(f"this processor does not multiply bytes (VNNI) in registers of {32 * tile.lanes} bits")

    assert int8_search.search_kernel(tile) is not None
    assert caplog.records == []


def reference_kernel(tile: TileShape, error: int) -> Callable[..., None]:
    """One block of rows by the definition, but for one sum, which is off by an error."""

    def kernel(first, stop, left, right, row_terms, column_terms, candidates, _):  # noqa: PLR0917 - as the kernel's
        rows, columns = left[0].view(np.int8).reshape(-1, tile.rows, 4), right.view(np.uint8)
        columns = columns.reshape(stop - first, -1, tile.columns, 4)
        sums = np.einsum("krb,pkcb->prc", rows.astype(np.int64), columns.astype(np.int64))
        sums[:, -1, -1] += error
        scaled, less = column_terms[:, 0, None], column_terms[:, 1, None]
        above = sums > row_terms[:, 0, :, None] + scaled * row_terms[:, 1, :, None] - less
        candidates[:] = (above << np.arange(tile.columns)).sum(axis=2).astype(np.uint32).view(np.int32)

    return kernel


@pytest.mark.parametrize("tile", [AVX512, AVX], ids=["512 bits", "256 bits"])
def test_the_self_check_passes_exact_sums_only(tile):
    assert int8_search._passes_self_check(reference_kernel(tile, 0), tile)
    assert not int8_search._passes_self_check(reference_kernel(tile, 1), tile)
    assert not int8_search._passes_self_check(reference_kernel(tile, -1), tile)


def does_not_compile(lanes: int, rows: int) -> Callable[..., None]:
    raise RuntimeError("Intrinsic has incorrect argument type!\nptr @llvm.x86.avx512.vpdpbusd\n" * lanes * rows)


def does_not_run(_lanes: int, _rows: int) -> Callable[..., None]:
    def kernel(*_: object) -> None:
        raise TypeError("No matching definition")

    return kernel


def computes_wrong_sums(lanes: int, rows: int) -> Callable[..., None]:
    return reference_kernel(TileShape(lanes, rows), 1)


@pytest.mark.parametrize("broken", [does_not_compile, does_not_run, computes_wrong_sums])
def test_a_kernel_that_does_not_work_is_reported_once_and_not_used(monkeypatch, caplog, nothing_compiled, broken):
    attempts = []
    monkeypatch.setattr(
        "trainer.kernels.vnni.search_kernel", lambda lanes, rows: attempts.append(lanes) or broken(lanes, rows)
    )
    monkeypatch.setattr(int8_search, "preferred_tile", lambda: AVX512)
    weights = torch.zeros(1024, 1024)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: int8_search.usable([weights], [weights]), range(8)))

    assert answers == [False] * 8
    assert attempts == [16]
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING"
    assert "numba 0" in message
    assert "llvmlite 0" in message
    assert "Torch computes" in message
    assert "\n" not in message
    assert len(message) < 400
    with pytest.raises(RuntimeError, match="ask `usable` first"):
        Int8Search([weights], [weights], torch.zeros(1024))


def test_a_kernel_that_cannot_be_imported_is_reported_once_and_not_used(monkeypatch, caplog, nothing_compiled):
    monkeypatch.setitem(sys.modules, "trainer.kernels.vnni", None)
    monkeypatch.setattr(int8_search, "preferred_tile", lambda: AVX512)

    assert int8_search.tile_shape() is None
    assert int8_search.tile_shape() is None
    assert len(caplog.records) == 1
