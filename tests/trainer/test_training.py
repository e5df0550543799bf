"""One step of a training: what a gradient goes through on its way into the weights."""

import pytest
import torch

from trainer.training import clip_gradient


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
