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

from leadre.lm.logprob import answer_logprobs, head_logprobs, response_logprobs

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


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_equal_those_of_full_logits(kind):
    model = tiny(kind)
    ids = torch.randint(0, 31, (3, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[1, 5, 6], [3, 4, 11], [2, 9, 10]])
    torch.testing.assert_close(
        response_logprobs(model, ids, positions), plain(model, ids, positions), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_full_logits(kind):
    model = tiny(kind)
    ids = torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[6, 7], [3, 4]])
    grads = []
    for way in (response_logprobs, plain):
        model.zero_grad()
        way(model, ids, positions).sum().backward()
        grads.append([weight.grad.clone() for weight in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_single_head_by_hand():
    model = tiny()
    hidden = torch.randn(16)
    probabilities = (hidden @ model.lm_head.weight.T).softmax(-1)
    torch.testing.assert_close(head_logprobs(model, hidden[None], torch.tensor([4])), probabilities[[4]].log())


def test_padding_and_missing_positions_change_nothing():
    model = tiny()
    ids = torch.tensor([[4, 9, 2, 7]])
    alone = response_logprobs(model, ids, torch.tensor([[2, 3]]))
    padded = response_logprobs(model, torch.tensor([[4, 9, 2, 7, 0, 0]]), torch.tensor([[2, 3, -1]]))
    torch.testing.assert_close(padded[:, :2], alone, rtol=0, atol=1e-6)
    assert padded[0, 2] == 0


def test_log_probs_of_a_bfloat16_model_are_float32():
    model = tiny().to(torch.bfloat16)
    ids = torch.tensor([[4, 9, 2, 7]])
    ours = response_logprobs(model, ids, torch.tensor([[2, 3]]))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain(model, ids, torch.tensor([[2, 3]])), rtol=0, atol=1e-6)
    answers = answer_logprobs(model, ids[:, :2], torch.tensor([2]), ids[:, None, 2:])
    torch.testing.assert_close(answers[0], ours, rtol=0, atol=0.05)


@pytest.mark.parametrize("position", [0, 4, -2])
def test_a_position_without_a_predecessor_or_outside_its_row_is_refused(position):
    with pytest.raises(ValueError, match="use -1 for no token"):
        response_logprobs(tiny(), torch.tensor([[4, 9, 2, 7]]), torch.tensor([[position]]))


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


def test_gradients_of_branches_equal_those_of_separate_rows():
    model = tiny()
    prompt, answers = torch.tensor([[3, 8, 5, 0]]), torch.tensor([[[1, 2, 3], [1, 4, 6]]])
    answer_logprobs(model, prompt, torch.tensor([3]), answers).sum().backward()
    ours = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    rows = torch.cat([prompt[:, :3].expand(2, -1), answers[0]], dim=1)
    plain(model, rows, torch.arange(3, 6).expand(2, -1)).sum().backward()
    for a, b in zip(ours, [weight.grad for weight in model.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
