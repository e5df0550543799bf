"""A pretended device: tensors that say they are elsewhere, compute on the CPU and refuse to be mixed with its tensors.

What runs on it without an error also runs on a GPU, as far as devices go; speed and kernels of a GPU are not tested.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")
"""A type of device that torch knows and no build supports."""
INDEXING = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default")
"""Operations that a GPU, too, does with indices from the CPU."""

COPY = "aten.copy_.default"


class Away(torch.Tensor):
    """A tensor on the pretended device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "Away":
        """Pretend that a CPU tensor is on the device."""
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), dtype=here.dtype, device=DEVICE
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def tolist(self) -> Any:
        """The numbers, which a GPU's tensors give too."""
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


class PretendedDevice(TorchDispatchMode):
    """Makes DEVICE usable; counts the operations that ran there and on the CPU, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.away: Counter[str] = Counter()
        self.here: Counter[str] = Counter()

    def __enter__(self) -> "PretendedDevice":
        self._tensor = torch.tensor
        # Of a list it allocates memory on the device itself, which only a real one has.
        torch.tensor = self._new_tensor
        return super().__enter__()

    def _new_tensor(self, data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if device != DEVICE:
            return self._tensor(data, device=device, **options)
        return self._tensor(data, **options).to(device)

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counted = self.away if _on_device(args, kwargs or {}) else self.here
        counted[str(func)] += 1
        return _dispatched(func, args, kwargs or {})


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(trees)[0] if isinstance(leaf, Tensor)]


def _on_device(args: Any, kwargs: dict[str, Any]) -> bool:
    return any(isinstance(tensor, Away) for tensor in _tensors(args, kwargs))


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; its results are on the device that the operation would leave them on."""
    moves = str(func) in ("aten._to_copy.default", COPY)
    checked = args[:1] + args[2:] if str(func) in INDEXING else args
    on_cpu = [tensor for tensor in _tensors(checked, kwargs) if not isinstance(tensor, Away) and tensor.dim()]
    away = _on_device(args, kwargs)
    assert moves or not (away and on_cpu), f"{func} mixes tensors of the device and of the CPU"
    wanted = kwargs.get("device")
    to_device = isinstance(args[0], Away) if str(func) == COPY else away
    if wanted is not None:
        to_device, kwargs = wanted.type == DEVICE.type, kwargs | {"device": torch.device("cpu")}
    originals = {id(tensor.here): tensor for tensor in _tensors(args, kwargs) if isinstance(tensor, Away)}
    args, kwargs = tree_map(lambda leaf: leaf.here if isinstance(leaf, Away) else leaf, (args, kwargs))
    result = func(*args, **kwargs)

    def back(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not to_device:
            return leaf
        if id(leaf) not in originals:
            return Away(leaf)
        if originals[id(leaf)].shape != leaf.shape:  # changed in place, as `squeeze_` does
            originals[id(leaf)].data = Away(leaf)
        return originals[id(leaf)]

    return tree_map(back, result)
