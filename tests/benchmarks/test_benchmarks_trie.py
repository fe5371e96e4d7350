"""What the benchmark of the trie measures, and its figures on a catalog of two thousand ads."""

import gc
import json

import pytest

from benchmarks import trie
from benchmarks.measure import main


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(trie, "ADS", 2000)
    monkeypatch.setattr(trie, "USERS", 2)
    monkeypatch.setattr(trie, "GOALS", {4: 0})


def test_a_quick_run_gives_all_figures(tiny, capsys):
    main(trie.MEASUREMENTS, ["--quick"])
    figures = {figure["name"]: figure for figure in json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]}
    assert figures["build: s"]["holds"] is True
    assert figures["size: dictionary / ours"]["holds"] is True
    assert 12 < figures["size: bytes an ad"]["value"] < 31  # 6 a node, and 2 to 5 nodes an ad
    assert figures["five steps, 4 beams: prefix function of Transformers / ours"]["holds"] is True
    assert gc.isenabled()


def test_trees_are_compared_node_by_node():
    from benchmarks.beam_peers import nested

    sids = trie._sids(500, 0)
    ours = trie._arrays(sids)
    trie._check_same_tree(sids, {"ours": ours, "dictionary": nested(sids.tokens)})
    with pytest.raises(AssertionError, match="leaves are of other ads"):
        trie._check_same_tree(sids, {"ours": ours, "dictionary": nested(sids.tokens[::-1])})
    with pytest.raises(AssertionError, match="codes differ"):
        trie._check_same_tree(sids, {"ours": ours, "dictionary": nested(sids.tokens[:-1])})
