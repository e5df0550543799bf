"""A training step: gradient clipping, and where it waits for a GPU."""

import sys

import pytest
import torch

from tests.worlds.tiny_activations import WIDTHS, tiny_activations, tiny_recipe
from trainer.crosscoder import selection
from trainer.kernels import gpu
from trainer.training import trainer
from trainer.training.trainer import Training, clip_gradient


@pytest.mark.parametrize(("size", "clipped"), [(0.01, 0.01), (3.0, 0.5)])
@pytest.mark.parametrize("in_step", [False, True])
def test_only_a_gradient_above_the_largest_norm_is_clipped(size, clipped, in_step):
    weights = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimiser = torch.optim.Adam(weights, fused=True)
    direction = torch.tensor([1.0, -2.0, 2.0, 4.0, 0.0]) / 5
    for weight, part in zip(weights, direction.split([3, 2]), strict=True):
        weight.grad = size * part

    clip_gradient(optimiser, 0.5, in_step=in_step)
    optimiser.step()

    moments = torch.cat([optimiser.state[weight]["exp_avg"] for weight in weights])
    torch.testing.assert_close(moments, 0.1 * clipped * direction)


def test_the_factor_of_one_step_does_not_clip_the_next():
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([weight], fused=True, betas=(0.0, 0.999))
    for size, expected in [(8.0, 0.5), (0.25, 0.25)]:
        weight.grad = torch.tensor([size])
        clip_gradient(optimiser, 0.5, in_step=True)
        optimiser.step()

        assert float(optimiser.state[weight]["exp_avg"]) == expected


@pytest.fixture
def unreadable_device(monkeypatch):
    """Torch's `meta` device in place of a GPU: accepts every operation, and only a readback gives a number.

    Returns the kernels that were launched on it, and the functions that waited for a readback.
    """
    launched: set[str] = set()
    waiting: set[str] = set()

    def caller() -> str:
        return sys._getframe(2).f_code.co_qualname.split(".<locals>")[0]

    class ScalarReadback:
        def __init__(self, numbers):
            assert numbers.device.type == "meta"
            self.count = numbers.numel()

        def tolist(self):
            waiting.add(caller())
            return [1000] * self.count

        def item(self):
            waiting.add(caller())
            return 1000

    def launch(kernel, grid, arguments, settings):
        assert {x.device.type for x in arguments if isinstance(x, torch.Tensor)} == {"meta"}
        launched.add(kernel)

    monkeypatch.setattr(trainer, "pick_device", lambda _: torch.device("meta"))
    monkeypatch.setattr(gpu, "AVAILABLE", True)
    monkeypatch.setattr(gpu, "DEVICE", "meta")
    monkeypatch.setattr(gpu, "_works", lambda: True)
    monkeypatch.setattr(gpu, "_launch", launch)
    for module in (gpu, selection, trainer):
        monkeypatch.setattr(module, "ScalarReadback", ScalarReadback)
    for module in (selection, trainer):
        monkeypatch.setattr(
            module, "nonzero_indices", lambda _, count: torch.zeros(count, dtype=torch.int64, device="meta")
        )
    monkeypatch.setattr(trainer, "clip_gradient", lambda *arguments, **_: clip_gradient(*arguments, in_step=True))
    monkeypatch.setattr(torch.optim.Adam, "step", lambda _: None)  # the fused step does not support the meta device
    return launched, waiting


@pytest.mark.parametrize(
    ("kind", "search_kernels", "selecting"),
    [
        ("batch_topk", {"count_above", "write_above"}, {"EntrySearch.result", "_keep_largest"}),
        ("topk", set(), {"row_topk"}),
    ],
)
def test_a_step_on_a_gpu_waits_only_for_its_readbacks(tmp_path, unreadable_device, kind, search_kernels, selecting):
    launched, waiting = unreadable_device
    recipe = tiny_recipe(crosscoder={"sparsity": {"kind": kind, "k": 3}}, training={"precision": "bfloat16"})
    training = Training(recipe, tiny_activations(tmp_path / "store"))
    training.step = trainer.LOG_EVERY - 1

    metrics = training.run_step({source: torch.zeros(64, width) for source, width in WIDTHS.items()})

    assert launched == {"weighted_sums", "decoder_gradients"} | search_kernels
    assert waiting == selecting | {
        "Training._find_dead_features",
        "Training._metrics",
        "Training.require_finite",  # on a GPU with the metrics only
    }
    assert metrics["loss"] == 1000
