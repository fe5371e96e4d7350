"""What the benchmarks of indexing measure on: inputs by count, and the library's losses against ours."""

import numpy as np
import pytest
import torch

from benchmarks.indexing import MEASUREMENTS, _counted_one_by_one, gpu, main
from benchmarks.inputs import clustered, hierarchical, isotropic, shared_codes, texts, write_world
from benchmarks.measure import Setting
from leadre import tables
from leadre.catalog.sids import extra_codes


@pytest.fixture(scope="module")
def peers():
    from benchmarks import residual_vq  # takes seconds to import

    return residual_vq


def test_of_the_codes_29_percent_are_shared_and_one_list_by_275():
    codes = shared_codes(10_000, levels=4, codebook_size=1024)
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    assert len(codes) == 10_000
    assert counts[counts > 1].sum() == pytest.approx(2900, abs=5)
    assert counts.max() == 275


def test_the_loop_counts_as_the_catalog_does():
    codes = shared_codes(2000, levels=2, codebook_size=1024)
    assert (_counted_one_by_one(codes) == extra_codes(codes)).all()


def test_vectors_are_fresh_for_each_seed_around_the_same_middles():
    """Around one middle two vectors are 0.3 sqrt(2 x 64) = 3.4 apart; two middles are 11."""
    first, second = (clustered(4000, 64, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert 2 < float(torch.cdist(first[:50], second).amin(1).median()) < 4


def test_a_world_of_texts_is_one_that_the_stages_read(tmp_path):
    write_world(tmp_path / "world", texts(50))
    ads = tables.read(tables.ADS, tmp_path / "world" / "ads.parquet")
    assert ads.height == 50
    assert ads["ad_id"].is_sorted()


def test_branches_of_a_tree_are_closer_than_the_trees_middle():
    """Without structure, two vectors of width 64 are sqrt(2 x 64) = 11 apart; of one leaf, 0.06 x 11 = 0.7."""
    tree, none = (
        torch.cdist(x[:50], x).topk(2, largest=False).values[:, 1].median()
        for x in (hierarchical(20_000, 64, seed=1), isotropic(20_000, 64, seed=1))
    )
    assert 0.4 < float(tree) < 0.9
    assert 5 < float(none) < 11


def test_the_library_is_equal_where_it_is_compared(peers):
    peers.assert_same_batch(peers.network(), peers.embeddings(256, 1))


@pytest.mark.parametrize("moving", [True, False])
def test_a_first_step_has_the_librarys_loss_in_every_repetition(peers, moving):
    network = peers.network()
    ours = peers.our_step(network, ema_decay=peers.EMA_DECAY if moving else None)
    library = peers.library_step(network, peers.MOVING if moving else peers.LEARNED)
    for turn in range(2):
        ours.restart()
        library.restart()
        x = peers.embeddings(256, turn)
        losses = ours(x), library(x)
        peers.assert_equal_first_steps(ours, library, losses, same_codebooks=moving)
        assert not torch.equal(ours.module.network.codebooks, network.codebooks)
    assert ours.module.global_step == 2
    with pytest.raises(AssertionError, match=r"the losses of one batch are 2\.0, nan"):
        peers.assert_equal_first_steps(ours, library, (2.0, float("nan")), same_codebooks=False)


def test_only_ties_may_have_other_codes(peers):
    network, x = peers.network(), peers.embeddings(64, 0)
    codes = network.encode(x)
    assert peers.assert_ties(network, x, codes, codes) == 0
    others = codes.clone()
    others[3, 1] = (others[3, 1] + 1) % peers.CODEBOOK_SIZE
    with pytest.raises(AssertionError, match="1 ads have other codes at level 2, and these are no ties"):
        peers.assert_ties(network, x, codes, others)
    network.codebooks.data[1, others[3, 1]] = network.codebooks.data[1, codes[3, 1]]
    others[3, 2:] = 0  # what follows a tie is another residual's
    assert peers.assert_ties(network, x, codes, others) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is told without a GPU")
def test_without_a_gpu_one_line_says_so_and_none_misses():
    (figure,) = gpu(Setting(quick=True, data=None))
    assert figure.note == "not run: no GPU"
    assert figure.holds is None


def test_real_data_that_is_not_there_is_told_as_not_run(tmp_path, capsys):
    names = [measurement.__name__ for measurement in MEASUREMENTS]
    assert "collision_rates" in names
    assert main(MEASUREMENTS, ["--only", "collision_rates", "--data", str(tmp_path)]) == 0
    assert "not run" in capsys.readouterr().out
