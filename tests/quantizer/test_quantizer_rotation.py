"""The rotation trick: its value, and its gradient against a rotation matrix built densely."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.quantizer.rotation import rotated


def _pair(seed, dim, rows=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)


def _matrix(vector, target):
    """R = I - 2 m m' + 2 q z' for z, q of length 1 (Fifty et al. 2024, eq. 4)."""
    z, q = vector / np.linalg.norm(vector), target / np.linalg.norm(target)
    middle = (z + q) / np.linalg.norm(z + q)
    return np.eye(len(z)) - 2 * np.outer(middle, middle) + 2 * np.outer(q, z)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_the_value_is_the_target_and_the_gradient_goes_back_through_a_rotation(seed, dim):
    z, target = _pair(seed, dim)
    z.requires_grad_(True)
    passed = rotated(z, target)
    assert torch.equal(passed, target)
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (passed * weights).sum().backward()
    for vector, to, weight, gradient in zip(z.detach().numpy(), target.numpy(), weights.numpy(), z.grad, strict=True):
        rotation = _matrix(vector, to)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(dim), atol=1e-9)
        stretch = np.linalg.norm(to) / np.linalg.norm(vector)
        np.testing.assert_allclose(stretch * rotation @ vector, to, atol=1e-9)
        np.testing.assert_allclose(gradient.numpy(), stretch * rotation.T @ weight, atol=1e-9)


def test_autograd_through_the_dense_matrix_held_constant_gives_the_same_gradient():
    z, target = _pair(3, 6)
    dense = z.clone().requires_grad_(True)
    for_each = [
        np.linalg.norm(q) / np.linalg.norm(v) * _matrix(v, q) for v, q in zip(z.numpy(), target.numpy(), strict=True)
    ]
    matrices = torch.from_numpy(np.stack(for_each))
    torch.einsum("bij,bj->bi", matrices, dense).sin().sum().backward()
    ours = z.clone().requires_grad_(True)
    rotated(ours, target).sin().sum().backward()
    torch.testing.assert_close(ours.grad, dense.grad)


def test_by_hand_a_quarter_turn_and_twice_the_length():
    """z = (1, 0) onto (0, 2): the transform is (a, b) -> 2 (-b, a); its transpose sends (3, 5) to 2 (5, -3)."""
    z = torch.tensor([[1.0, 0.0]], requires_grad=True)
    rotated(z, torch.tensor([[0.0, 2.0]])).backward(torch.tensor([[3.0, 5.0]]))
    assert z.grad.tolist() == [pytest.approx([10.0, -6.0])]


@pytest.mark.parametrize(
    ("vector", "target", "gradient"),
    [
        ([0.0, 0.0], [1.0, 2.0], [3.0, 5.0]),  # no direction to turn: straight through
        ([1.0, 2.0], [0.0, 0.0], [3.0, 5.0]),
        ([0.0, 0.0], [0.0, 0.0], [3.0, 5.0]),
        ([1.0, 0.0], [-1.0, 0.0], [-3.0, 5.0]),  # half a turn has no plane of its own: mirrored along the vector
    ],
)
def test_vectors_without_a_turn_have_finite_gradients(vector, target, gradient):
    z = torch.tensor([vector], requires_grad=True)
    passed = rotated(z, torch.tensor([target]))
    assert passed.tolist() == [target]
    passed.backward(torch.tensor([[3.0, 5.0]]))
    assert z.grad.tolist() == [pytest.approx(gradient)]
