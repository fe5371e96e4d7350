"""Token log-probabilities against the plain way: all logits of all positions, one row an answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from leadre.catalog.trie import build
from leadre.decoding.beam_search import beam_search
from leadre.lm import logprob
from leadre.lm.logprob import TrieSupport, answer_logprobs, head_logprobs, siblings

SHAPE = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
}
KINDS = {
    "hunyuan": (HunYuanDenseV1ForCausalLM, HunYuanDenseV1Config, {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": False}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
}


def tiny(kind="hunyuan", attention="sdpa"):
    torch.manual_seed(0)
    model, config, extra = KINDS[kind]
    return model(config(**SHAPE, **extra, attn_implementation=attention)).eval()


def plain(model, ids, positions):
    """All logits, a softmax over each, and the wanted tokens picked one by one."""
    logprobs = model(ids).logits.float().log_softmax(-1)
    return torch.stack(
        [torch.stack([logprobs[b, p - 1, ids[b, p]] for p in row]) for b, row in enumerate(positions.tolist())]
    )


def test_a_single_head_by_hand():
    model = tiny()
    hidden = torch.randn(16)
    probabilities = (hidden @ model.lm_head.weight.T).softmax(-1)
    torch.testing.assert_close(head_logprobs(model, hidden[None], torch.tensor([4])), probabilities[[4]].log())


def test_log_probs_of_a_bfloat16_model_are_float32():
    model = tiny().to(torch.bfloat16)
    ids = torch.tensor([[4, 9, 2, 7]])
    ours = answer_logprobs(model, ids[:, :2], torch.tensor([2]), ids[:, None, 2:])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours[0], plain(model, ids, torch.tensor([[2, 3]])), rtol=0, atol=0.05)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match=r"lengths holds 0, .* give every row a prompt"):
        answer_logprobs(
            tiny(), torch.zeros((2, 3), dtype=torch.long), torch.tensor([2, 0]), torch.ones((2, 1, 2)).long()
        )


MODELS = {(kind, attention): tiny(kind, attention) for kind in KINDS for attention in ("sdpa", "eager")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    num_answers=st.integers(1, 3),
    length=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_answers_after_one_prompt_equal_answers_in_rows_of_their_own(
    kind, attention, lengths, num_answers, length, seed
):
    model = MODELS[kind, attention]
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths) + 1
    prompts = torch.randint(0, 31, (len(lengths), width), generator=draw)  # the padding is random, too
    answers = torch.randint(0, 31, (len(lengths), num_answers, length), generator=draw)
    with torch.no_grad():
        ours = answer_logprobs(model, prompts, torch.tensor(lengths), answers)
        for b, size in enumerate(lengths):
            for r in range(num_answers):
                row = torch.cat([prompts[b, :size], answers[b, r]])[None]
                alone = plain(model, row, torch.arange(size, size + length)[None])
                torch.testing.assert_close(ours[b, r], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_branches_equal_those_of_separate_rows(kind):
    model = tiny(kind)
    prompt, answers = torch.tensor([[3, 8, 5, 0]]), torch.tensor([[[1, 2, 3], [1, 4, 6]]])
    answer_logprobs(model, prompt, torch.tensor([3]), answers).sum().backward()
    ours = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    rows = torch.cat([prompt[:, :3].expand(2, -1), answers[0]], dim=1)
    plain(model, rows, torch.arange(3, 6).expand(2, -1)).sum().backward()
    for a, b in zip(ours, [weight.grad for weight in model.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("among", [None, torch.tensor([[[4, 9, -1], [4, 5, 6]], [[8, -1, -1], [0, 3, 1]]])])
def test_blocks_of_the_head_change_neither_log_probs_nor_gradients(monkeypatch, among):
    targets, found = torch.tensor([[4, 6], [8, 3]]), []
    for size in (2**26, 31, 3 * 31):
        monkeypatch.setattr(logprob, "_BLOCK", size)
        model = tiny()
        hidden = torch.randn((2, 2, 16), generator=torch.Generator().manual_seed(0)).requires_grad_()
        ours = head_logprobs(model, hidden, targets, among)
        ours.sum().backward()
        found.append((ours, hidden.grad, model.lm_head.weight.grad))
    for blocks in found[1:]:
        for block, whole in zip(blocks, found[0], strict=True):
            torch.testing.assert_close(block, whole, rtol=1e-5, atol=1e-6)


# log-probabilities over the trie

SIDS = torch.tensor([[0, 1, 0], [0, 2, 0], [0, 2, 1], [0, 2, 3], [2, 0, 0], [2, 1, 0], [3, 3, 1]])
SUPPORT = TrieSupport(build(SIDS), (range(10, 14), range(14, 18), range(20, 24)))
STARTS = torch.tensor([10, 14, 20])


def over_the_trie(model, prompt, sid):
    """Code by code: the whole model on the whole row, a softmax over the codes that go on to an ad."""
    ids, found = prompt.tolist(), []
    for level, code in enumerate(sid.tolist()):
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        open_codes = sorted({row[level] for row in SIDS.tolist() if row[:level] == sid.tolist()[:level]})
        scores = torch.stack([logits[STARTS[level] + other] for other in open_codes])
        found.append(scores.log_softmax(0)[open_codes.index(code)])
        ids.append(int(STARTS[level]) + code)
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_over_the_trie_equal_a_plain_loop(kind):
    model = MODELS[kind, "sdpa"]
    prompts, lengths = torch.tensor([[3, 8, 5], [1, 2, 0]]), torch.tensor([3, 2])
    rows = torch.tensor([[0, 3, 6], [2, 4, 5]])
    with torch.no_grad():
        ours = answer_logprobs(model, prompts, lengths, SIDS[rows] + STARTS, SUPPORT)
        for b, length in enumerate(lengths):
            for r in range(3):
                theirs = over_the_trie(model, prompts[b, :length], SIDS[rows[b, r]])
                torch.testing.assert_close(ours[b, r], theirs, rtol=1e-5, atol=1e-5)


def test_probabilities_of_all_ads_add_up_to_one_and_are_the_beam_searchs_scores():
    model, prompt = MODELS["hunyuan", "sdpa"], torch.tensor([[3, 8, 5]])
    with torch.no_grad():
        ours = answer_logprobs(model, prompt, torch.tensor([3]), (SIDS + STARTS)[None], SUPPORT)[0].sum(-1)
    assert ours.exp().sum().item() == pytest.approx(1, abs=1e-6)
    beams = beam_search(
        model,
        prompt,
        torch.ones_like(prompt),
        trie=SUPPORT.trie,
        sid_tokens=SUPPORT.sid_tokens,
        beam_width=7,
        normalizer="trie",
    )
    torch.testing.assert_close(ours[beams.rows[0]], beams.scores[0], rtol=1e-5, atol=1e-5)


def test_a_forced_code_costs_nothing_exactly_and_moves_nothing():
    model, prompt = tiny(), torch.tensor([[3, 8, 5]])
    ours = answer_logprobs(model, prompt, torch.tensor([3]), (SIDS[[6]] + STARTS)[None], SUPPORT)
    assert ours[0, 0, 1:].tolist() == [0, 0]
    assert ours[0, 0, 0] < 0
    ours[0, 0, 1:].sum().backward()
    assert all((weight.grad == 0).all() for weight in model.parameters())


def test_siblings_by_hand():
    assert siblings(SUPPORT, SIDS[[3, 6]] + STARTS).tolist() == [
        [[10, 12, 13], [15, 16, -1], [20, 21, 23]],
        [[10, 12, 13], [17, -1, -1], [21, -1, -1]],
    ]


def test_an_answer_that_is_no_ad_is_refused():
    with pytest.raises(ValueError, match=r"answers holds \[12, 17, 20\], which is no ad of the trie"):
        siblings(SUPPORT, torch.tensor([[10, 15, 20], [12, 17, 20], [13, 17, 21]]))


@pytest.mark.parametrize("support", [None, SUPPORT])
def test_a_missing_answer_has_log_probability_0_and_changes_no_other(support):
    model, prompts, lengths = tiny(), torch.tensor([[3, 8, 5], [1, 2, 0]]), torch.tensor([3, 2])
    answers = (SIDS + STARTS)[torch.tensor([[0, 3], [6, 4]])]
    missing = torch.cat([answers, torch.full((2, 1, 3), -1)], dim=1)
    missing[1, 1] = -1
    alone = answer_logprobs(model, prompts, lengths, answers, support)
    ours = answer_logprobs(model, prompts, lengths, missing, support)
    assert (ours[:, 2] == 0).all()
    assert (ours[1, 1] == 0).all()
    for at in ((0, 0), (0, 1), (1, 0)):
        torch.testing.assert_close(ours[at], alone[at], rtol=1e-5, atol=1e-6)
    ours.sum().backward()
    grads = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    alone = answer_logprobs(model, prompts, lengths, answers, support)
    (alone.sum() - alone[1, 1].sum()).backward()
    for ours_, theirs in zip(grads, [weight.grad for weight in model.parameters()], strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-4, atol=1e-5)
