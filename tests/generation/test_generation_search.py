"""The choice of the search, and what 8-bit weights do to lists."""

import json

import pytest
import torch

from leadre.catalog import trie as tries
from leadre.generation import search
from leadre.generation.generate import generate_audience
from leadre.generation.search import compare, search_of
from leadre.lm.model import load


@pytest.fixture
def chosen(tiny):
    """The lists of three prompts under some settings."""
    lm, trie = load(tiny.model), tries.build(torch.tensor(tiny.sids))
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])

    def make(**changes):
        return search_of(tiny.config(**changes), lm.model, trie, (range(10, 13), range(13, 16)))(ids, mask, None)

    return make


def test_the_graph_finds_what_the_plain_search_finds(chosen):
    plain, graph = chosen(), chosen(engine="graph")
    assert graph.rows.equal(plain.rows)
    assert torch.allclose(graph.scores, plain.scores, atol=1e-5)


def test_several_ads_a_beam_are_merged_into_one_list(chosen):
    rows = chosen(next_n=2, beam_width=30, num_ads=6).rows
    assert rows.sort(1).values.tolist() == [list(range(6))] * 3


def test_the_graph_is_refused_for_several_ads_a_beam(chosen):
    with pytest.raises(ValueError, match=r"decoding\.engine is graph, but decoding\.next_n is 2: .*engine=eager"):
        chosen(engine="graph", next_n=2)


def test_short_and_empty_lists_are_compared_by_what_they_hold():
    before = torch.tensor([[1, 2, 3], [4, -1, -1], [5, 6, 7]])
    after = torch.tensor([[3, 1, 9], [4, 8, -1], [6, 5, 7]])
    found = compare(before, after)
    assert found.beam_overlap == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert (found.top1_agreement, found.calibration_users) == (pytest.approx(1 / 3), 3)


def test_8_bit_weights_are_made_from_the_first_users_and_their_harm_is_told(tiny, compute, monkeypatch):
    given = []

    def halve(model, weights, calibration):
        given.append((weights, [ids[mask.bool()].tolist() for ids, mask in calibration]))
        for parameter in model.parameters():
            parameter.data.mul_(0.5)

    monkeypatch.setattr("leadre.lm.quantized.quantize", halve)
    monkeypatch.setattr("leadre.generation.worker.CALIBRATION_USERS", 4)
    generate_audience(tiny.config(weights="w8a8"), *tiny.inputs, out=tiny.out, compute=compute)
    ((weights, prompts),) = given
    assert weights == "w8a8"
    tokens = [word for number in range(4) for word in tiny.words_of(number)]
    assert sorted(token for batch in prompts for token in batch) == sorted(tokens)
    told = json.loads((tiny.out / "generation.json").read_text())
    assert 0 <= told["beam_overlap"] <= 1
    assert 0 <= told["top1_agreement"] <= 1
    assert told["calibration_users"] == 4


def test_weights_as_trained_have_nothing_to_be_compared_with(tiny, compute, monkeypatch):
    monkeypatch.setattr(search, "compare", None)
    generate_audience(tiny.config(), *tiny.inputs, out=tiny.out, compute=compute)
    assert "beam_overlap" not in json.loads((tiny.out / "generation.json").read_text())
