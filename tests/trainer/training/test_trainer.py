"""One step of a training: what a gradient goes through on its way into the weights."""

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
def test_a_gradient_longer_than_allowed_is_shortened_and_no_other(size, clipped, in_step):
    weights = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimiser = torch.optim.Adam(weights, fused=True)
    direction = torch.tensor([1.0, -2.0, 2.0, 4.0, 0.0]) / 5
    for weight, part in zip(weights, direction.split([3, 2]), strict=True):
        weight.grad = size * part

    clip_gradient(optimiser, 0.5, in_step=in_step)
    optimiser.step()

    moments = torch.cat([optimiser.state[weight]["exp_avg"] for weight in weights])
    torch.testing.assert_close(moments, 0.1 * clipped * direction)


def test_what_one_step_was_shortened_by_does_not_shorten_the_next():
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([weight], fused=True, betas=(0.0, 0.999))
    for size, seen in [(8.0, 0.5), (0.25, 0.25)]:
        weight.grad = torch.tensor([size])
        clip_gradient(optimiser, 0.5, in_step=True)
        optimiser.step()

        assert float(optimiser.state[weight]["exp_avg"]) == seen


@pytest.fixture
def unreadable(monkeypatch):
    """A device that takes every order and gives no number back but as a reply: torch's `meta`, in place of a GPU.

    Gives the kernels that were started on it, and who waited for a reply.
    """
    started: set[str] = set()
    waited: set[str] = set()

    def asking() -> str:
        return sys._getframe(2).f_code.co_qualname.split(".<locals>")[0]

    class ScalarReadback:
        def __init__(self, numbers):
            assert numbers.device.type == "meta"
            self.count = numbers.numel()

        def numbers(self):
            waited.add(asking())
            return [1000] * self.count

        def number(self):
            waited.add(asking())
            return 1000

    def launch(kernel, grid, given, settings):
        assert {x.device.type for x in given if isinstance(x, torch.Tensor)} == {"meta"}
        started.add(kernel)

    monkeypatch.setattr(trainer, "pick_device", lambda _: torch.device("meta"))
    monkeypatch.setattr(gpu, "AVAILABLE", True)
    monkeypatch.setattr(gpu, "DEVICE", "meta")
    monkeypatch.setattr(gpu, "_works", lambda: True)
    monkeypatch.setattr(gpu, "_launch", launch)
    for module in (gpu, selection, trainer):
        monkeypatch.setattr(module, "ScalarReadback", ScalarReadback)
    for module in (selection, trainer):
        monkeypatch.setattr(
            module, "true_places", lambda _, count: torch.zeros(count, dtype=torch.int64, device="meta")
        )
    monkeypatch.setattr(trainer, "clip_gradient", lambda *given, **_: clip_gradient(*given, in_step=True))
    monkeypatch.setattr(torch.optim.Adam, "step", lambda _: None)  # its fused step knows no such device
    return started, waited


@pytest.mark.parametrize(
    ("kind", "searching", "asking"),
    [
        ("batch_topk", {"count_above", "write_above"}, {"Search.found", "_largest"}),
        ("topk", set(), {"row_topk"}),
    ],
)
def test_a_step_on_a_gpu_waits_for_it_only_where_it_asks_for_a_reply(tmp_path, unreadable, kind, searching, asking):
    started, waited = unreadable
    recipe = tiny_recipe(crosscoder={"sparsity": {"kind": kind, "k": 3}}, training={"precision": "bfloat16"})
    fit = Training(recipe, tiny_activations(tmp_path / "store"))
    fit.step = trainer.LOG_EVERY - 1

    measures = fit.run_step({source: torch.zeros(64, width) for source, width in WIDTHS.items()})

    assert started == {"weighted_sums", "pull_and_sums"} | searching
    assert waited == asking | {"Training._dead", "Training._measures"}
    assert measures["loss"] == 1000
