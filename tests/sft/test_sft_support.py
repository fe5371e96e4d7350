"""The loss whose probabilities are taken among the codes that lead to an ad."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.catalog import trie
from leadre.decoding.beam_search import beam_search
from leadre.lm.encode import HISTORY_AD, RESPONSE
from leadre.lm.logprob import TrieSupport
from leadre.lm.rows import Rows
from leadre.sft.batches import collate, num_learned
from leadre.sft.module import feasible, learned_logprobs
from tests.small_model import small_model

TEXT, LEVELS = 5, (3, 2, 2)  # tokens 0..4 are text, then <a_0> <a_1> <a_2>, <b_0> <b_1>, <c_0> <c_1>
SIDS = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (2, 1, 0)]
TOKENS = (range(5, 8), range(8, 10), range(10, 12))
SUPPORT = TrieSupport(trie.build(torch.tensor(SIDS)), TOKENS)
ADS = st.integers(0, len(SIDS) - 1)


def _model():
    return small_model(TEXT + sum(LEVELS)).eval()


def _sid(ad):
    return [tokens.start + code for tokens, code in zip(TOKENS, SIDS[ad], strict=True)]


def _rows(users):
    """A row a user: the ads of the history, each before a text token, then the ad of the response."""
    ids, kinds, offsets = [], [], [0]
    for *history, target in users:
        ids += [1]
        kinds += [0]
        for ad in history:
            ids += [*_sid(ad), 2]
            kinds += [HISTORY_AD] * 3 + [0]
        ids += _sid(target)
        kinds += [RESPONSE] * 3
        offsets.append(len(ids))
    return Rows(np.int32(ids), np.uint8(kinds), np.int64(offsets), np.zeros(len(users), np.int32))


def _batch(rows, groups, loss_on="history_and_response"):
    which = np.arange(len(groups) - 1)
    return collate(rows, groups, num_learned(rows, groups, loss_on=loss_on), which, which, loss_on=loss_on)


def _by_hand(model, users):
    """Each code's log-probability among the codes that any S-ID has after the same ones, row by row."""
    rows, told = _rows(users), []
    for number, user in enumerate(users):
        ids = rows.ids[rows.offsets[number] : rows.offsets[number + 1]].tolist()
        logits = model(torch.tensor([ids])).logits[0].double()
        for place, ad in enumerate(user):
            start = 1 + 4 * place
            for level, code in enumerate(SIDS[ad]):
                codes = sorted({sid[level] for sid in SIDS if sid[:level] == SIDS[ad][:level]})
                among = logits[start + level - 1][[TOKENS[level].start + other for other in codes]]
                told.append(among.log_softmax(0)[codes.index(code)].item())
    return told


@settings(deadline=None, max_examples=25)
@given(users=st.lists(st.lists(ADS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_codes_probability_is_among_the_codes_that_lead_to_an_ad(users):
    model, rows = _model(), _rows(users)
    with torch.no_grad():
        batch = _batch(rows, np.arange(len(users) + 1))
        found = learned_logprobs(model, batch, SUPPORT)
        assert sorted(found.tolist()) == pytest.approx(sorted(_by_hand(model, users)), abs=1e-5)  # rows may be packed


def test_the_probabilities_of_all_ads_sum_to_one():
    model, ads = _model(), range(len(SIDS))
    rows = _rows([[3, 1, ad] for ad in ads])
    with torch.no_grad():
        batch = _batch(rows, np.arange(len(SIDS) + 1), loss_on="response")
        found = learned_logprobs(model, batch, SUPPORT).view(len(SIDS), 3).sum(1)
        plain = learned_logprobs(model, batch).view(len(SIDS), 3).sum(1)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert plain.exp().sum().item() < 0.9  # the rest is of codes that lead to no ad


def test_it_is_what_decoding_with_the_normalizer_trie_scores_by():
    model, ads = _model(), range(len(SIDS))
    prompt = [1, *_sid(3), 2]
    with torch.no_grad():
        batch = _batch(_rows([[3, ad] for ad in ads]), np.arange(len(SIDS) + 1), loss_on="response")
        found = learned_logprobs(model, batch, SUPPORT).view(len(SIDS), 3).sum(1)
        ids = torch.tensor([prompt])
        beams = beam_search(
            model, ids, torch.ones_like(ids), trie=SUPPORT.trie, sid_tokens=TOKENS, beam_width=4, normalizer="trie"
        )
    assert beams.rows[0].tolist() == found.argsort(descending=True).tolist()
    torch.testing.assert_close(beams.scores[0], found.sort(descending=True).values)


def test_a_tree_whose_sids_share_their_first_codes_has_the_loss_and_gradient_of_its_rows():
    users = [[3, 1, 0], [3, 1, 1], [3, 1, 2]]  # the responses are <a_0> <b_0> <c_0>, <a_0> <b_0> <c_1>, <a_0> <b_1> ..
    rows, results = _rows(users), []
    for groups in (np.arange(4), np.array([0, 3])):
        model = _model()
        batch = _batch(rows, groups)
        loss = -(batch.weights * learned_logprobs(model, batch, SUPPORT)).sum() / batch.total
        loss.backward()
        results.append((len(batch.places), loss.item(), [weight.grad for weight in model.parameters()]))
    assert (results[0][0], results[1][0]) == (27, 12)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)
    for one, two in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_code_that_is_alone_costs_nothing_and_what_fills_up_is_no_token():
    batch = _batch(_rows([[3]]), np.arange(2))
    assert feasible(batch, SUPPORT).tolist() == [[5, 7], [9, -1], [10, -1]]
    assert learned_logprobs(_model(), batch, SUPPORT)[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ids", [[1, 5, 8], [1, 5, 8, 10, 3], [5, 8, 10]])
def test_learned_tokens_that_are_no_whole_sid_are_refused(ids):
    """A cut S-ID, a text token, and one whose first code nothing precedes."""
    kinds = [0, *[RESPONSE] * (len(ids) - 1)] if ids[0] == 1 else [RESPONSE] * 3
    rows = Rows(np.int32(ids), np.uint8(kinds), np.int64([0, len(ids)]), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=r"support is 'trie', but a learned token is no code of a whole S-ID: use"):
        feasible(_batch(rows, np.arange(2)), SUPPORT)


def test_an_sid_that_the_catalog_does_not_have_is_refused():
    rows = Rows(np.int32([1, 6, 8, 10]), np.uint8([0, 2, 2, 2]), np.int64([0, 4]), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=r"\[6, 8, 10\], which is no ad of the trie"):
        feasible(_batch(rows, np.arange(2)), SUPPORT)
