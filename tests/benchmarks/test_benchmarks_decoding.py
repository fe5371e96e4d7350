"""What the benchmarks of decoding measure: other searches that give our lists, and figures of a tiny run of each."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks import decoding
from benchmarks.inputs import zipf_sids
from benchmarks.measure import main
from leadre import tables


@pytest.fixture(scope="module")
def peers():
    from benchmarks import beam_peers  # takes seconds to import

    return beam_peers


@pytest.fixture(scope="module")
def model(peers):
    return peers.language_model(hidden=128, layers=1)


@pytest.fixture
def tiny(peers, model, monkeypatch):
    """The measurements, on a small model and catalog, with goals that always hold."""
    monkeypatch.setattr(peers, "language_model", lambda: model)
    for name, value in {"ADS": 300, "MANY_ADS": 500, "USERS": 2, "PROMPT": 12, "GOALS": {3: (0, 0), 5: (0, 0)}}.items():
        monkeypatch.setattr(decoding, name, value)


def _figures(capsys):
    return {figure["name"]: figure for figure in json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]}


def test_a_tenth_of_the_ads_has_an_extra_code_and_low_codes_are_frequent():
    sids = zipf_sids(5000, seed=0)
    assert sids.shape == (5000, 5)
    assert len(np.unique(sids, axis=0)) == 5000
    assert (sids[:, -1] > 0).sum() == 500
    counts = np.bincount(sids[:, 0], minlength=1024)
    assert counts.argmax() == 0
    assert counts[:10].sum() > counts[512:].sum()
    assert (np.lexsort(sids.T[::-1]) != np.arange(5000)).any(), "these would be in order"
    assert (zipf_sids(5000, seed=1) != sids).any()


def test_the_dictionary_leads_from_tokens_to_rows(peers):
    root = peers.nested([[10, 20], [10, 21], [11, 20]])
    assert root == {10: {20: 0, 21: 1}, 11: {20: 2}}
    allowed = peers.allowed_by(root, prompt=2)
    assert allowed(0, torch.tensor([5, 6])) == [10, 11]
    assert allowed(1, torch.tensor([5, 6, 10])) == [20, 21]
    assert peers.rows_of(root, torch.tensor([[11, 20], [10, 21]])).tolist() == [2, 1]


def test_prompts_are_padded_on_the_left(peers):
    given = peers.prompts([2, 4], seed=0)
    assert given.mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert given.ids[0, :2].tolist() == [0, 0]
    assert int(given.ids.max()) < peers.TEXT_TOKENS


@pytest.mark.parametrize(("normalizer", "renormalize"), [("full", False), ("trie", True)])
def test_generate_and_a_copied_cache_give_our_lists(peers, model, normalizer, renormalize):
    trie, root = peers.catalog(400)
    given = peers.prompts([3, 11, 1], seed=1)
    ours = peers.search(model, given, trie=trie, beam_width=6, normalizer=normalizer)
    peers.assert_same_lists(ours, peers.generate(model, given, root=root, beam_width=6, renormalize=renormalize))
    peers.assert_same_lists(ours, peers.expand(model, given, trie=trie, beam_width=6, normalizer=normalizer))


@pytest.mark.parametrize("width", [1, 4])
def test_steps_without_a_model_give_the_same_lists(peers, width):
    trie, root = peers.catalog(2000)
    levels = torch.randn(5, 3, peers.VOCABULARY, generator=torch.Generator().manual_seed(0))
    given = [level.log_softmax(1).repeat_interleave(width, 0) for level in levels]
    theirs = peers.steps_of_transformers(given, root=root, users=3, beam_width=width)
    peers.assert_same_lists(peers.steps_over_arrays(given, trie=trie, users=3, beam_width=width), theirs)


def test_other_ads_and_other_scores_are_told(peers):
    lists = peers.Beams(torch.tensor([[3, 1]]), torch.tensor([[-1.0, -2.0]]))
    peers.assert_same_lists(lists, lists._replace(scores=lists.scores + 5e-5))
    with pytest.raises(AssertionError, match="2 of 2 places hold other ads"):
        peers.assert_same_lists(lists, lists._replace(rows=torch.tensor([[1, 3]])))
    with pytest.raises(AssertionError, match=r"scores are up to 0\.01 apart"):
        peers.assert_same_lists(lists, lists._replace(scores=lists.scores - 0.01))


def test_a_clock_is_put_around_functions_and_taken_away():
    import benchmarks.inputs as module

    before = module.clustered, module.isotropic
    with decoding._clocked(module, "clustered", "isotropic") as taken:
        assert module.isotropic(2, 3, seed=0).shape == (2, 3)
        module.clustered(2, 3, seed=0)
    assert len(taken) == 2
    assert all(seconds >= 0 for seconds in taken)
    assert (module.clustered, module.isotropic) == before


@pytest.mark.slow
def test_a_quick_run_of_every_race_gives_all_figures(tiny, capsys):
    races = (decoding.against_generate, decoding.against_the_floor, decoding.mixed_lengths)
    main(races, ["--quick"])
    figures = _figures(capsys)
    assert figures["3 beams: generate with a dictionary / ours"]["holds"] is True
    assert figures["5 beams: generate with a dictionary / ours"]["value"] is None
    assert figures["5 beams: one prefill, cache copied a beam / ours"]["holds"] is True
    assert figures["5 beams: time / (one prefill * 2.67), normalizer trie"]["value"] > 0
    assert figures["left padding, trie: largest difference of a score"]["holds"] is True


def test_the_share_of_the_trie_is_below_the_whole(tiny, capsys):
    main([decoding.trie_share], ["--quick"])
    figures = _figures(capsys)
    assert len(figures) == 4
    assert all(0 < figure["value"] < 100 for figure in figures.values())
    assert figures["3 beams: % of the search beside the model, normalizer full"]["goal"] == "<= 2"


def test_a_search_that_gives_other_lists_is_told(tiny, peers, monkeypatch, capsys):
    search = peers.search

    def wrong(*args, **kwargs):
        lists = search(*args, **kwargs)
        return lists._replace(rows=lists.rows.flip(1))

    monkeypatch.setattr(peers, "search", wrong)
    assert main([decoding.against_the_floor], ["--quick"]) == 1
    assert "places hold other ads" in _figures(capsys)["against_the_floor: equal results"]["note"]


def test_a_user_base_gets_its_lists_and_tells_its_pace_and_memory(tmp_path, monkeypatch, capsys):
    from benchmarks import user_base

    monkeypatch.setattr(user_base, "PROMPTS", 20)
    root = tmp_path / "base"
    user_base.write_inputs(root)
    user_base.write_audience(root / "audience", 45, behaviors=3, max_tokens=32)
    user_base.main([str(root / "audience"), "decoding.beam_width=2", "decoding.num_ads=2", "decoding.shard_users=30"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["users"], told["parts"], told["invalid_ads"], told["users_without_list"]) == (45, 2, 0, 0)
    assert told["users_per_second"] > 0
    assert told["peak_bytes"] > 10_000_000
    lists = tables.read(tables.LISTS, root / "audience" / "out" / "lists")
    assert lists["user_id"].unique(maintain_order=True).to_list() == [f"user{user:07d}" for user in range(45)]
    first, again = (lists.filter(pl.col("user_id") == f"user{user:07d}")["ad_id"].to_list() for user in (3, 23))
    assert first == again, "the two share a prompt"
