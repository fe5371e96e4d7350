"""Codebooks by moving averages, against a loop over vectors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leadre.quantizer.ema import averaged, code_sums
from leadre.quantizer.residual import Quantized, quantize_residuals
from leadre.quantizer.rqvae import RQVAE
from leadre.quantizer.rqvae_module import RQVAEModule


def _module(decay, levels=2, size=5, dim=3):
    network = RQVAE(
        input_dim=4,
        hidden_dims=(),
        code_dim=dim,
        levels=levels,
        codebook_size=size,
        generator=torch.Generator().manual_seed(0),
    )
    module = RQVAEModule(
        network,
        beta_quant=0.25,
        rotation=False,
        ema_decay=decay,
        quantize=quantize_residuals,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_steps=0,
        steps=10,
        restart_every_steps=5,
        seed=0,
    )
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value, broadcast=lambda value: value)
    module._trainer = SimpleNamespace(strategy=strategy, global_step=5, log_every_n_steps=100)
    return module


def _by_loop(codebooks, batches, decay):
    """van den Oord 2017, A.1, vector by vector in float64; sizes start at 1, smoothed by 1e-5."""
    codebooks = codebooks.numpy().astype(np.float64)
    sizes, sums = np.ones(codebooks.shape[:2]), codebooks.copy()
    for quantized in batches:
        for level in range(len(codebooks)):
            took = np.zeros(codebooks.shape[1])
            total = np.zeros(codebooks.shape[1:])
            for row, code in enumerate(quantized.codes[:, level]):
                took[code] += 1
                total[code] += quantized.residuals[level, row].numpy()
            sizes[level] = decay * sizes[level] + (1 - decay) * took
            sums[level] = decay * sums[level] + (1 - decay) * total
            everything = sizes[level].sum()
            for code in range(codebooks.shape[1]):
                smoothed = (sizes[level, code] + 1e-5) / (everything + codebooks.shape[1] * 1e-5) * everything
                codebooks[level, code] = sums[level, code] / smoothed
    return codebooks


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_codebooks_equal_a_loop_over_vectors(decay):
    module = _module(decay)
    start = module.network.codebooks.detach().clone()
    batches = []
    for seed in range(4):
        z = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
        quantized = quantize_residuals(z, module.network.codebooks)
        batches.append(Quantized(*(part.clone() for part in quantized)))
        taken = torch.stack([torch.bincount(level, minlength=5) for level in quantized.codes.T])
        module._follow(quantized, taken, decay=decay)
    expected = _by_loop(start, batches, decay)
    np.testing.assert_allclose(module.network.codebooks.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_by_hand_a_code_is_the_mean_of_what_took_it():
    """Codes 0, 0, 1 of 3; residuals 1, 3, 5: sums 4, 5, 0, sizes 2, 1, 0; smoothing moves the means by 1e-5."""
    sums = code_sums(torch.tensor([[0], [0], [1]]), torch.tensor([[[1.0], [3.0], [5.0]]]), 3)
    assert sums.flatten().tolist() == [4.0, 5.0, 0.0]
    codes = averaged(torch.tensor([[2.0, 1.0, 0.0]]), sums)
    assert codes.flatten().tolist() == pytest.approx([2.0, 5.0, 0.0], rel=1e-4)


def test_codebooks_take_no_gradient_and_are_no_ones_to_optimize():
    module = _module(0.9)
    result = module.network(torch.randn(8, 4), beta_quant=0.25)
    (result.reconstruction_loss + result.quantization_loss).backward()
    assert module.network.codebooks.grad is None
    assert module.network.encoder[0].weight.grad.abs().sum() > 0
    optimized = module.configure_optimizers()["optimizer"].param_groups
    assert [len(group["params"]) for group in optimized] == [4]
    plain = _module(None).configure_optimizers()["optimizer"].param_groups
    assert [len(group["params"]) for group in plain] == [4, 1]


def test_a_code_that_nothing_took_restarts_as_the_average_of_one_residual():
    module = _module(0.9)
    batch = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    module.uses[:, 0] = 1
    kept = module.network.codebooks[:, 0].clone()
    residuals = module.network.quantize(batch).residuals
    module._restart_unused(batch)
    assert torch.equal(module.network.codebooks[:, 0], kept)
    assert module.sizes[:, 1:].tolist() == torch.ones(2, 4).tolist()
    assert torch.equal(module.sums[:, 1:], module.network.codebooks[:, 1:])
    for level in range(2):
        for code in module.network.codebooks[level, 1:]:
            assert (residuals[level] == code).all(-1).any()
