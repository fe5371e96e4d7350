"""The RQ-VAE: losses and gradients by hand, and the training of its codebooks."""

import numpy as np
import pytest
import torch

from leadre.quantizer.rqvae import RQVAE, quantization_loss


def _linear(weight_in, weight_out, codebooks):
    """An RQ-VAE without hidden layers, D = d = 1: z = weight_in * x, rebuilt = weight_out * quantized."""
    codebooks = torch.tensor(codebooks)[..., None]
    network = RQVAE(
        input_dim=1,
        hidden_dims=(),
        code_dim=1,
        levels=len(codebooks),
        codebook_size=codebooks.shape[1],
        generator=torch.Generator().manual_seed(0),
    )
    network.encoder[0].weight.data.fill_(weight_in)
    network.decoder[0].weight.data.fill_(weight_out)
    network.codebooks.data.copy_(codebooks)
    return network


def test_losses_by_hand():
    """x = 2 and 0; z = 2 x = 4 and 0.

    Ad 1: level 1 takes 3, leaving 1; level 2 takes 0.5: z^ = 3.5, rebuilt 3.5 / 2 = 1.75, error 0.25^2 = 0.0625;
    distances 1^2 + 0.5^2 = 1.25. Ad 2: level 1 takes 1, leaving -1; level 2 takes -2: z^ = -1, rebuilt -0.5, error
    0.25; distances 1 + 1 = 2. Means: 0.15625 and 1.625, the latter times 1 + beta.
    """
    network = _linear(2.0, 0.5, [[1.0, 3.0], [0.5, -2.0]])
    result = network(torch.tensor([[2.0], [0.0]]), beta_quant=0.25)
    assert result.quantized.codes.tolist() == [[1, 0], [0, 1]]
    assert result.reconstruction.flatten().tolist() == [1.75, -0.5]
    assert result.reconstruction_loss.item() == pytest.approx(0.15625)
    assert result.quantization_loss.item() == pytest.approx(1.25 * 1.625)


def test_the_gradient_passes_the_quantization_straight_through():
    """One ad, x = 2, w_in = 2, w_out = 0.5, one level with codes 1 and 3: z = 4, z^ = 3, rebuilt 1.5.

    d L_recons / d rebuilt = 2 (1.5 - 2) = -1; to w_out times z^: -3; to z (as if z^ were z) times w_out: -0.5, so to
    w_in times x: -1. The code gets nothing from the reconstruction.
    """
    network = _linear(2.0, 0.5, [[1.0, 3.0]])
    network(torch.tensor([[2.0]]), beta_quant=0.25).reconstruction_loss.backward()
    assert network.decoder[0].weight.grad.item() == pytest.approx(-3.0)
    assert network.encoder[0].weight.grad.item() == pytest.approx(-1.0)
    assert network.codebooks.grad is None


def test_the_quantization_loss_moves_each_code_by_its_own_level_and_the_encoder_by_all():
    """z = 4; level 1 has 3 (residual 4), level 2 has 0.5 (residual 1).

    Codes: d/de (r - e)^2 = -2 (r - e): -2 and -1. Encoder: beta * 2 (1 + 0.5) = 0.75 for z, times x = 2.
    """
    network = _linear(2.0, 0.5, [[1.0, 3.0], [0.5, -2.0]])
    network(torch.tensor([[2.0]]), beta_quant=0.25).quantization_loss.backward()
    assert network.codebooks.grad.flatten().tolist() == pytest.approx([0.0, -2.0, -1.0, 0.0])
    assert network.encoder[0].weight.grad.item() == pytest.approx(1.5)
    assert network.decoder[0].weight.grad is None


def test_beta_weighs_the_encoders_half_alone():
    generator = torch.Generator().manual_seed(0)
    residuals, codewords = torch.randn(2, 3, 5, 4, generator=generator)
    plain = np.sum((residuals - codewords).numpy().astype(np.float64) ** 2) / 5
    for beta in (0.0, 0.25, 1.0):
        assert float(quantization_loss(residuals, codewords, beta=beta)) == pytest.approx((1 + beta) * plain, rel=1e-6)


def test_codes_do_not_change_when_embeddings_are_shifted_and_scaled_with_the_networks_own_mean_and_scale():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    network = RQVAE(
        input_dim=6,
        hidden_dims=(8,),
        code_dim=3,
        levels=2,
        codebook_size=5,
        generator=torch.Generator().manual_seed(0),
    )
    codes, rebuilt = network.encode(x), network.decode(network.encode(x))
    network.mean.fill_(7.0)
    network.scale.fill_(4.0)
    assert torch.equal(network.encode(4 * x + 7), codes)
    torch.testing.assert_close(network.decode(codes), 4 * rebuilt + 7)
    assert torch.equal(network(4 * x + 7, beta_quant=0.25).quantized.codes, codes)


def test_first_weights_come_from_the_generator_alone():
    shape = {"input_dim": 6, "hidden_dims": (8,), "code_dim": 3, "levels": 2, "codebook_size": 5}
    networks = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        networks.append(RQVAE(**shape, generator=torch.Generator().manual_seed(0)).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
