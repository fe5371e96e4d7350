"""Residual quantization, against loops over levels in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.quantizer.residual import BLOCK, nearest, quantize_residuals, sum_of_codes


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _by_numpy(z, codebooks):
    """The formulas of LEADRE A.1, ad by ad and level by level."""
    codes, residuals, sums = [], [], []
    for vector in z.astype(np.float64):
        residual, chosen, left, total = vector, [], [], np.zeros_like(vector)
        for codebook in codebooks.astype(np.float64):
            code = int(np.argmin(((residual - codebook) ** 2).sum(-1)))
            left.append(residual)
            chosen.append(code)
            residual = residual - codebook[code]
            total = total + codebook[code]
        codes.append(chosen)
        residuals.append(left)
        sums.append(total)
    return np.array(codes), np.array(residuals).swapaxes(0, 1), np.array(sums)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 7), st.integers(1, 5))
def test_quantization_equals_a_loop_over_ads_and_levels(seed, levels, codebook_size, dim):
    z = torch.randn(9, dim, generator=_seeded(seed))
    codebooks = torch.randn(levels, codebook_size, dim, generator=_seeded(seed + 1))
    quantized = quantize_residuals(z, codebooks)
    codes, residuals, sums = _by_numpy(z.numpy(), codebooks.numpy())
    assert quantized.codes.tolist() == codes.tolist()
    np.testing.assert_allclose(quantized.residuals.numpy(), residuals, atol=1e-5)
    np.testing.assert_allclose(quantized.codewords.sum(0).numpy(), sums, atol=1e-5)
    torch.testing.assert_close(sum_of_codes(quantized.codes, codebooks), quantized.codewords.sum(0))


def test_two_levels_by_hand():
    """5 is nearest to 4, and leaves 1; 1 is nearest to 1.5, and the sum is 5.5. 0 is nearest to 1, and leaves -1."""
    codebooks = torch.tensor([[[1.0], [4.0]], [[1.5], [-2.0]]])
    quantized = quantize_residuals(torch.tensor([[5.0], [0.0]]), codebooks)
    assert quantized.codes.tolist() == [[1, 0], [0, 1]]
    assert quantized.residuals[:, :, 0].tolist() == [[5.0, 0.0], [1.0, -1.0]]
    assert quantized.codewords.sum(0)[:, 0].tolist() == [5.5, -1.0]


def test_the_lowest_of_equal_codes_is_taken():
    assert nearest(torch.tensor([[2.0]]), torch.tensor([[3.0], [2.0], [2.0]])).tolist() == [1]


def test_the_lowest_of_equal_codes_is_taken_among_many():
    codebook = torch.randn(40, 3, generator=_seeded()).repeat(5, 1)
    x = torch.randn(200, 3, generator=_seeded(1))
    assert torch.equal(nearest(x, codebook), nearest(x, codebook[:40]))


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("codebook_size", [1, 7, 300])
def test_the_nearest_code_does_not_hang_on_the_blocks(count, codebook_size):
    """Whole numbers: every sum is exact, so that the plain formula must agree to the bit."""
    x = torch.randint(-9, 10, (count, 3), generator=_seeded()).float()
    codebook = torch.randint(-9, 10, (codebook_size, 3), generator=_seeded(1)).float()
    distances = (x[:, None] - codebook).square().sum(-1)
    assert nearest(x, codebook).tolist() == distances.argmin(-1).tolist()


def test_a_gradient_reaches_vectors_and_codes_though_the_choice_has_none():
    z = torch.randn(5, 3, generator=_seeded()).requires_grad_()
    codebooks = torch.randn(2, 4, 3, generator=_seeded(1)).requires_grad_()
    quantized = quantize_residuals(z, codebooks)
    quantized.residuals.sum().backward()
    assert z.grad.tolist() == [[2.0] * 3] * 5  # once a level
    assert codebooks.grad is None
    quantize_residuals(z, codebooks).codewords.sum().backward()
    counts = [torch.bincount(level, minlength=4) for level in quantized.codes.T]
    assert codebooks.grad[:, :, 0].tolist() == torch.stack(counts).tolist()


def test_levels_may_have_codebooks_of_different_sizes():
    z = torch.randn(20, 3, generator=_seeded())
    first, second = torch.randn(4, 3, generator=_seeded(1)), torch.randn(9, 3, generator=_seeded(2))
    quantized = quantize_residuals(z, [first, second])
    assert torch.equal(quantized.codes[:, 0], nearest(z, first))
    assert torch.equal(quantized.codes[:, 1], nearest(z - first[quantized.codes[:, 0]], second))
