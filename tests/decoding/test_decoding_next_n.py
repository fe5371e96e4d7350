"""Sequences of ads: against scoring every sequence by plain forwards, and the lists made of them."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from leadre.catalog import trie as tries
from leadre.decoding import filters
from leadre.decoding.beam_search import beam_search, sid_tokens
from leadre.decoding.next_n import Sequences, generate_next_n, merge

SHAPE = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "tie_word_embeddings": False,
}
TOKENS = sid_tokens((10, 13), (3, 4))
NORMALIZERS = ["full", "level", "trie"]
torch.manual_seed(0)
MODELS = {
    "llama": LlamaForCausalLM(LlamaConfig(**SHAPE)).eval(),
    "qwen3": Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=4)).eval(),
}


def catalog(seed, ads):
    every = list(itertools.product(range(3), range(4)))
    chosen = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:ads]
    return sorted(every[row] for row in chosen.tolist())


def padded(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.int64), torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(0, 10, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask.long()


def gain(model, prompt, codes, choices, code, normalizer):
    """The log-probability of a code after the codes of a sequence, from one plain forward."""
    tokens = [TOKENS[place % 2].start + each for place, each in enumerate(codes)]
    with torch.no_grad():
        logits = model(torch.cat([prompt, torch.tensor(tokens, dtype=torch.int64)])[None]).logits[0, -1]
    level = TOKENS[len(codes) % 2]
    among = {"full": range(19), "level": level, "trie": [level.start + each for each in choices]}[normalizer]
    return float(logits[level.start + code] - logits[list(among)].logsumexp(0))


def reference(model, prompt, sids, normalizer, width, next_n):
    """Beam search by the book over sequences of codes; an ad that stands in a sequence is taken from its trie."""
    beams = [((), 0.0)]
    for step in range(2 * next_n):
        grown = []
        for codes, score in beams:
            whole = [tuple(codes[at : at + 2]) for at in range(0, len(codes) - 1, 2)]
            begun = codes[len(codes) - step % 2 :]
            choices = sorted({sid[step % 2] for sid in sids if sid not in whole and sid[: step % 2] == tuple(begun)})
            grown += [
                ((*codes, code), score + gain(model, prompt, codes, choices, code, normalizer)) for code in choices
            ]
        if not grown:
            break
        beams = sorted(grown, key=lambda beam: (-beam[1], beam[0]))[:width]
    return [([sids.index(codes[at : at + 2]) for at in range(0, len(codes), 2)], score) for codes, score in beams]


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    normalizer=st.sampled_from(NORMALIZERS),
    ads=st.integers(1, 12),
    width=st.integers(1, 6),
    next_n=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_sequences_are_those_of_beam_search_by_plain_forwards(kind, normalizer, ads, width, next_n, seed):
    model, sids, (ids, mask) = MODELS[kind], catalog(seed, ads), padded([5, 3], seed)
    found = generate_next_n(
        model,
        ids,
        mask,
        trie=tries.build(torch.tensor(sids)),
        sid_tokens=TOKENS,
        beam_width=width,
        normalizer=normalizer,
        next_n=next_n,
    )
    assert found.rows.shape == (2, width, next_n)
    for user in range(2):
        wanted = reference(model, ids[user][mask[user] == 1], sids, normalizer, width, next_n)
        rows = [[row for row in beam if row >= 0] for beam in found.rows[user].tolist()]
        assert rows == [ads for ads, _ in wanted] + [[]] * (width - len(wanted))
        scores = torch.tensor([score for _, score in wanted] + [-torch.inf] * (width - len(wanted)))
        torch.testing.assert_close(found.scores[user], scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_one_ad_a_pass_is_the_plain_beam(normalizer):
    sids, (ids, mask) = catalog(1, 9), padded([6, 2, 4], 0)
    plan = {
        "trie": tries.build(torch.tensor(sids)),
        "sid_tokens": TOKENS,
        "beam_width": (2, 5),
        "normalizer": normalizer,
    }
    plain = beam_search(MODELS["llama"], ids, mask, **plan)
    found = merge(generate_next_n(MODELS["llama"], ids, mask, **plan, next_n=1), 5)
    assert torch.equal(found.rows, plain.rows)
    assert torch.equal(found.scores, plain.scores)


def test_ads_of_a_sequence_are_distinct_and_none_is_filtered_out():
    sids, (ids, mask) = catalog(2, 12), padded([6, 2], 0)
    trie = tries.build(torch.tensor(sids))
    allowed = torch.ones(1, 12, dtype=torch.bool)
    allowed[0, 3] = False
    filter = filters.make(trie, filters.counts(trie, allowed), torch.tensor([0, 0]), torch.tensor([[5], [-1]]))
    found = generate_next_n(
        MODELS["qwen3"],
        ids,
        mask,
        trie=trie,
        sid_tokens=TOKENS,
        beam_width=4,
        normalizer="full",
        next_n=5,
        filter=filter,
    )
    for user, forbidden in enumerate([{3, 5}, {3}]):
        for rows in found.rows[user].tolist():
            assert len(set(rows)) == 5
            assert not set(rows) & (forbidden | {-1})


def sequences(ads, ad_scores):
    """What `merge` reads of one user: the ads ``(W, N)`` and the scores of their beams."""
    ads, ad_scores = torch.tensor([ads]), torch.tensor([ad_scores])
    return Sequences(ads, ad_scores[..., -1], ads, ad_scores)


def test_an_ad_is_listed_by_how_often_it_is_expected_each_place_counting_alike():
    # First ads 4, 7, 9 at .2, .2, .1; second ads 7, 4 at .03, .01: places give 4: .4 + .25, 7: .4 + .75, 9: .2.
    ads, scores = [[4, 7], [7, 4], [9, -1]], [[0.2, 0.03], [0.2, 0.01], [0.1, 0.0]]
    found = merge(sequences(ads, torch.tensor(scores).log().tolist()), 3)
    assert found.rows.tolist() == [[7, 4, 9]]
    torch.testing.assert_close(found.scores.exp(), 0.5 * torch.tensor([[1.15, 0.65, 0.2]]))
    assert merge(sequences(ads, torch.tensor(scores).log().tolist()), 5).rows.tolist() == [[7, 4, 9, -1, -1]]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), width=st.integers(1, 5), length=st.integers(1, 4))
def test_a_list_is_that_of_adding_up_in_a_dictionary(data, width, length):
    ads = [[data.draw(st.integers(-1, 5)) for _ in range(length)] for _ in range(width)]
    assume(any(row[0] >= 0 for row in ads))  # who has a second ad has a first
    scores = [[data.draw(st.floats(-9, 0)) if ad >= 0 else -torch.inf for ad in row] for row in ads]
    expected = {}
    for n in range(length):
        total = sum(math.exp(row[n]) for row in scores)
        for row, weights in zip(ads, scores, strict=True):
            if row[n] >= 0:
                expected[row[n]] = expected.get(row[n], 0.0) + math.exp(weights[n]) / total
    found = merge(sequences(ads, scores), 6)
    listed = {
        row: score for row, score in zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True) if row >= 0
    }
    assert set(listed) == set(expected)
    assert list(listed.values()) == sorted(listed.values(), reverse=True)
    first = sum(math.exp(row[0]) for row in scores)
    torch.testing.assert_close(
        [math.exp(listed[ad]) for ad in expected],
        [first * each for each in expected.values()],
        rtol=1e-3,
        atol=1e-6,
    )


def test_a_list_has_as_many_ads_as_the_first_ads_beam():
    sids, (ids, mask) = catalog(2, 12), padded([6, 2], 0)
    found = generate_next_n(
        MODELS["llama"],
        ids,
        mask,
        trie=tries.build(torch.tensor(sids)),
        sid_tokens=TOKENS,
        beam_width=6,
        normalizer="trie",
        next_n=3,
    )
    assert bool((merge(found, 6).rows >= 0).all())


def test_very_small_probabilities_are_not_lost():
    found = merge(sequences([[1], [2]], [[-900.0], [-901.0]]), 2)
    assert found.rows.tolist() == [[1, 2]]
    assert found.scores.tolist() == [[-900.0, -901.0]]


def test_no_sequence_gives_no_list():
    found = merge(sequences([[-1, -1]] * 2, [[-torch.inf] * 2] * 2), 3)
    assert found.rows.tolist() == [[-1, -1, -1]]
    assert found.scores.tolist() == [[-torch.inf] * 3]


def test_no_ad_a_pass_is_refused():
    ids, mask = padded([3], 0)
    with pytest.raises(ValueError, match="next_n is 0: a sequence has at least 1 ad"):
        generate_next_n(
            MODELS["llama"],
            ids,
            mask,
            trie=tries.build(torch.tensor(catalog(0, 3))),
            sid_tokens=TOKENS,
            beam_width=2,
            normalizer="full",
            next_n=0,
        )
