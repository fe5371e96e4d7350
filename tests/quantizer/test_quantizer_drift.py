"""Drift, against plain numpy, and on embeddings of which some are held out, turned away, or broken."""

import numpy as np
import pytest
import torch

from leadre.quantizer.drift import LEAST, drift


def _drawn(num=900, dim=12, seed=0):
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(30, dim))
    return torch.from_numpy(middles[generator.integers(30, size=num)] + 0.3 * generator.normal(size=(num, dim))).float()


def _rows(start, end):
    return torch.arange(start, end)


def test_it_is_the_ratio_of_the_distances_to_the_nearest_known_text():
    x, known, new = _drawn(num=90), _rows(0, 60), _rows(60, 90)
    unit = (x / x.norm(dim=1, keepdim=True)).double().numpy()
    away = 1 - unit @ unit.T
    among = away[:60, :60] + 9 * np.eye(60)
    expected = away[60:, :60].min(1).mean() / among.min(1).mean()
    assert drift(x, known, new) == pytest.approx(expected, rel=1e-4)
    assert drift(x[known.tolist() + new.tolist()], known, new) == drift(x, known, new)


def test_blocks_do_not_matter(monkeypatch):
    x = _drawn()
    whole = drift(x, _rows(0, 600), _rows(600, 900))
    monkeypatch.setattr("leadre.quantizer.drift.BLOCK", 256)
    assert drift(x, _rows(0, 600), _rows(600, 900)) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_texts_held_out_at_random_give_about_one_and_those_of_other_directions_far_more(seed, share):
    x = _drawn(num=3000, seed=seed)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(seed))
    new, known = order.split([round(share * 3000), 3000 - round(share * 3000)])
    assert 0.8 < drift(x, known, new) < 1.25
    x[new] = -x[new]
    assert drift(x, known, new) > 3


def test_known_texts_that_are_not_finite_are_passed_over():
    x = _drawn(num=90)
    x[3] = np.nan
    assert drift(x, _rows(0, 60), _rows(60, 90)) > 0
    x[:60] = np.inf
    assert drift(x, _rows(0, 60), _rows(60, 90)) is None


def test_few_texts_and_texts_all_alike_tell_nothing():
    x = _drawn(num=2 * LEAST)
    assert drift(x, _rows(0, LEAST), _rows(LEAST, 2 * LEAST)) is not None
    assert drift(x, _rows(0, LEAST - 1), _rows(LEAST, 2 * LEAST)) is None
    assert drift(x, _rows(0, LEAST), _rows(LEAST + 1, 2 * LEAST)) is None
    x[:LEAST] = 1
    assert drift(x, _rows(0, LEAST), _rows(LEAST, 2 * LEAST)) is None
