"""Normalisers against values computed by hand."""

import torch

from trainer.crosscoder.normalisation import centred_rms, median_norm


def test_centred_rms_subtracts_the_mean_and_gives_a_mean_squared_norm_of_the_width():
    blocks = [torch.tensor([[1.0, 10.0], [3.0, 10.0]]), torch.tensor([[1.0, 14.0], [3.0, 14.0]])]

    normaliser = centred_rms(blocks)

    assert normaliser.mean.tolist() == [2.0, 12.0]
    # Squared distances from the mean are 1 + 4 each; the width is 2.
    assert abs(normaliser.scale - (2 / 5) ** 0.5) < 1e-6


def test_median_norm_keeps_the_mean_and_scales_to_the_root_of_the_mean_width():
    normaliser = median_norm([torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])], mean_width=9.0)

    assert normaliser.mean.tolist() == [0.0, 0.0]
    assert abs(normaliser.scale - 3 / 5) < 1e-6


def test_denormalise_inverts_the_normalisation():
    x = torch.randn(20, 4) * 7 + 3
    normaliser = centred_rms([x])

    torch.testing.assert_close(normaliser.denormalise(normaliser(x)), x, atol=1e-5, rtol=1e-5)
