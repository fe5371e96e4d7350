"""Codes without meaning: uniform, independent of each other, and a shuffle that leaves everything but the meaning."""

import hashlib

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from leadre.quantizer.controls import random_codes, shuffled
from leadre.quantizer.load import load


def _keys(count):
    return [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(count)]


def test_random_codes_by_hand():
    """Eight bytes a level of SHAKE-128 over "seed key", little-endian, modulo K."""
    digest = hashlib.shake_128(b"0 abc").digest(24)
    expected = [int.from_bytes(digest[8 * level : 8 * level + 8], "little") % 100 for level in range(3)]
    assert random_codes(["abc"], levels=3, codebook_size=100, seed=0).tolist() == [expected]


def test_random_codes_are_uniform_on_every_level_and_levels_do_not_depend_on_each_other():
    codes = random_codes(_keys(20_000), levels=3, codebook_size=16, seed=0).numpy()
    for level in range(3):
        assert chisquare(np.bincount(codes[:, level], minlength=16)).pvalue > 0.001
    pairs = codes[:, 0] * 16 + codes[:, 1]
    assert chisquare(np.bincount(pairs, minlength=256)).pvalue > 0.001


def test_random_codes_come_from_seed_and_text_alone():
    codes = random_codes(_keys(50), levels=3, codebook_size=64, seed=1)
    assert torch.equal(random_codes(_keys(50)[20:], levels=3, codebook_size=64, seed=1), codes[20:])
    assert not torch.equal(random_codes(_keys(50), levels=3, codebook_size=64, seed=2), codes)
    assert random_codes([], levels=3, codebook_size=64, seed=1).shape == (0, 3)


@pytest.mark.parametrize("rows", [2, 3, 50])
def test_a_shuffle_hands_every_row_to_another(rows):
    codes = torch.arange(rows)[:, None].repeat(1, 3)
    handed = shuffled(codes, seed=0)
    assert sorted(handed[:, 0].tolist()) == list(range(rows))
    assert (handed != codes).all()
    assert torch.equal(shuffled(codes, seed=0), handed)
    assert rows < 50 or not torch.equal(shuffled(codes, seed=1), handed)


def test_a_single_row_stays():
    assert shuffled(torch.tensor([[3, 1]]), seed=0).tolist() == [[3, 1]]


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans"])
def test_shuffled_codes_have_the_same_histogram_and_collisions_and_a_large_error(
    tmp_path, run, configured, clusters, name
):
    changes = {"levels": 2, "codebook_size": 8, "spread_last_level": False}
    if name == "tiny":
        changes["steps"] = 150
    plain = run(tmp_path / "plain", clusters(), configured(name, **changes))
    mixed = run(tmp_path / "mixed", clusters(), configured(name, **changes, shuffled=True))
    assert sorted(mixed.codes.tolist()) == sorted(plain.codes.tolist()) != plain.codes.tolist()
    same = ["counts", "collision_rate", "collision_rate_nearest", "largest_group", "perplexity", "bits", "variance"]
    assert {name: mixed.report[name] for name in same} == {name: plain.report[name] for name in same}
    assert mixed.report["reconstruction_error"] > 1 > 2 * plain.report["reconstruction_error"]  # 1: the mean vector's
    network = load(mixed.out)
    assert network.quantize(torch.from_numpy(clusters())).codes.tolist() == plain.codes.tolist()


def test_random_codes_are_told_without_an_error_of_reconstruction(tmp_path, run, configured, clusters):
    texts = [i % 30 for i in range(40)]
    ran = run(tmp_path, clusters(), configured("random", seed=5), texts=texts)
    assert ran.codes[30:].tolist() == ran.codes[:10].tolist()
    assert (ran.report["num_distinct"], ran.report["codebook_sizes"]) == (30, [64, 64, 64])
    assert ran.report["reconstruction_error"] is None
    assert ran.report["collision_rate_nearest"] is None
    keys = [hashlib.sha256(str(text).encode()).hexdigest()[:32] for text in texts]
    assert ran.codes.tolist() == random_codes(keys, levels=3, codebook_size=64, seed=5).tolist()
