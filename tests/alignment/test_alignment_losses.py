"""The losses by hand, by identity, and against independent references: TRL, and formulas written out anew."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, PreTrainedTokenizerFast

from leadre.alignment.losses import (
    dpo_loss,
    ipo_loss,
    rank_loss,
    rrhf_loss,
    rrhf_official_loss,
    sdpo_loss,
    sft_loss,
)
from leadre.lm.logprob import answer_logprobs

LOGPROBS = st.lists(st.floats(-30, 0), min_size=3, max_size=3).map(torch.tensor)


def dpo(chosen, rejected, reference_chosen, reference_rejected, beta=0.1, label_smoothing=0.0):
    return dpo_loss(
        chosen,
        rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        beta=beta,
        label_smoothing=label_smoothing,
    )


def test_dpo_by_hand():
    loss = dpo(
        torch.tensor([-1.0, -5.0]), torch.tensor([-3.0, -4.0]), torch.tensor([-2.0, -4.0]), torch.tensor([-2.0, -4.0])
    )
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-0.1 * 2)), math.log(1 + math.exp(0.1 * 1))], abs=1e-7)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@given(chosen=LOGPROBS, rejected=LOGPROBS)
def test_a_policy_that_is_its_reference_has_loss_log_2_exactly(label_smoothing, chosen, rejected):
    loss = dpo(chosen, rejected, chosen, rejected, label_smoothing=label_smoothing)
    assert (loss == torch.tensor(2.0).log()).all()


@given(a=LOGPROBS, b=LOGPROBS, c=LOGPROBS, d=LOGPROBS)
def test_swapping_chosen_and_rejected_swaps_the_roles_of_the_smoothed_label(a, b, c, d):
    smooth = 0.2
    swapped = dpo(b, a, d, c, label_smoothing=smooth)
    expected = (1 - smooth) * dpo(b, a, d, c) + smooth * dpo(a, b, c, d)
    torch.testing.assert_close(swapped, expected, rtol=1e-5, atol=1e-6)
    gap = 0.1 * ((a - b) - (c - d))  # -log s(-x) = -log s(x) + x
    torch.testing.assert_close(dpo(b, a, d, c), dpo(a, b, c, d) + gap, rtol=1e-5, atol=1e-5)


@given(a=LOGPROBS, b=LOGPROBS, c=LOGPROBS, d=LOGPROBS, shift=st.floats(-10, 10))
def test_dpo_does_not_see_a_shift_of_both_log_probs(a, b, c, d, shift):
    torch.testing.assert_close(dpo(a + shift, b + shift, c, d), dpo(a, b, c, d), rtol=1e-5, atol=1e-5)


def test_dpo_has_the_gradient_of_the_paper():
    chosen = torch.tensor([-1.0], requires_grad=True)
    rejected = torch.tensor([-2.5], requires_grad=True)
    dpo(chosen, rejected, torch.tensor([-2.0]), torch.tensor([-2.0]), beta=0.5).backward()
    weight = 0.5 * torch.sigmoid(torch.tensor([-0.5 * 1.5]))
    torch.testing.assert_close(chosen.grad, -weight)
    torch.testing.assert_close(rejected.grad, weight)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_a_beta_that_is_not_above_zero_is_refused(beta):
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"beta is .* must be above 0"):
        dpo(one, one, one, one, beta=beta)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5])
def test_a_label_smoothing_outside_its_range_is_refused(label_smoothing):
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"label_smoothing is .* use 0 to below 0.5"):
        dpo(one, one, one, one, label_smoothing=label_smoothing)


def test_a_shared_prefix_has_no_gradient_under_dpo():
    logprobs = torch.tensor([[[-0.5, -1.0, -2.0], [-0.5, -1.0, -0.1]]], requires_grad=True)
    prefix = logprobs[:, :1, :2].expand(-1, 2, -1)  # the same two numbers for both answers, as for a shared prefix
    chosen, rejected = torch.cat([prefix, logprobs[:, :, 2:]], dim=2).sum(-1).unbind(1)
    dpo(chosen, rejected, torch.zeros(1), torch.zeros(1)).backward()
    assert logprobs.grad[0, 0, :2].tolist() == [0, 0]
    assert logprobs.grad[0, 0, 2] < 0


def test_rank_loss_by_hand():
    scores = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -2.0, -1.0]])
    rewards = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    # first row: (1 < 3): 1, (1 < 2): 3, (2 < 3): -4 - -2 < 0; second row: in order
    assert rank_loss(scores, rewards).tolist() == [1 + 3, 0]


def test_equal_rewards_make_no_pair():
    assert rank_loss(torch.tensor([[-1.0, -9.0]]), torch.tensor([[2.0, 2.0]])) == 0


@given(st.lists(st.tuples(st.floats(-9, 0), st.integers(0, 3)), min_size=2, max_size=6))
def test_rank_loss_equals_its_double_sum(candidates):
    by_sum = sum(max(0.0, p - q) for p, r in candidates for q, s in candidates if r < s)
    scores, rewards = torch.tensor(candidates, dtype=torch.float64).T
    assert rank_loss(scores[None], rewards[None]).item() == pytest.approx(by_sum)


def test_rrhf_adds_the_likelihood_of_the_best_response():
    logprobs = torch.tensor([[[-1.0, -1.0], [-1.0, -3.0]], [[-2.0, -2.0], [-1.0, -1.0]]])
    rewards = torch.tensor([[1.0, 2.0], [5.0, 4.0]])
    # ranks: -1 - -2 = 1 and -1 - -2 = 1; the best cost 4 and 4
    assert rrhf_loss(logprobs, rewards, sft_weight=0.5).tolist() == [1 + 0.5 * 4, 1 + 0.5 * 4]


def by_its_authors(logprobs, prompt_lengths, rewards):
    """RRHF on whole padded rows, as its published training computes it: the facts of its code, not its lines.

    A row of labels holds -100 at the prompt; they become 0 before the labels that are not -100 are counted, so all
    places count. The loss of a query is the sum over its wrongly ordered pairs, and the mean of the best one's row.
    """
    losses = []
    for row, prompt, reward in zip(logprobs, prompt_lengths, rewards, strict=True):
        rows = [[0.0] * prompt + response for response in row]  # the prompt's log-probabilities are masked
        scores = [sum(padded) / len(padded) for padded in rows]
        wrong = [
            p - q for p, r in zip(scores, reward, strict=True) for q, s in zip(scores, reward, strict=True) if r < s
        ]
        best = rows[max(range(len(reward)), key=reward.__getitem__)]
        losses.append(sum(gap for gap in wrong if gap > 0) - sum(best) / len(best))
    return losses


@given(st.integers(0, 999), st.integers(2, 4), st.integers(1, 6))
def test_rrhf_equals_what_its_authors_code_computes(seed, candidates, length):
    draw = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand((5, candidates, length), generator=draw, dtype=torch.float64)
    rewards = torch.rand((5, candidates), generator=draw)
    prompts = torch.randint(1, 9, (5,), generator=draw)
    ours = rrhf_official_loss(logprobs, rewards, row_lengths=prompts + length, sft_weight=1.0)
    theirs = by_its_authors(logprobs.tolist(), prompts.tolist(), rewards.tolist())
    assert ours.tolist() == pytest.approx(theirs, abs=1e-12)


def test_the_two_variants_of_rrhf_differ_by_a_constant_where_all_responses_have_one_length():
    logprobs, rewards = -torch.rand(4, 2, 5), torch.tensor([[1.0, 0.0]]).expand(4, -1)
    paper = rrhf_loss(logprobs, rewards, sft_weight=0.0)
    official = rrhf_official_loss(logprobs, rewards, row_lengths=torch.full((4,), 45), sft_weight=0.0)
    torch.testing.assert_close(official, paper * 5 / 45)


# several rejected responses


def sdpo(chosen, rejected, reference_chosen, reference_rejected, present=None, beta=0.7):
    return sdpo_loss(
        chosen,
        rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        present=torch.ones_like(rejected, dtype=torch.bool) if present is None else present,
        beta=beta,
    )


@given(a=LOGPROBS, b=LOGPROBS, c=LOGPROBS, d=LOGPROBS)
def test_sdpo_with_one_rejected_response_is_dpo(a, b, c, d):
    ours = sdpo(a, b[:, None], c, d[:, None], beta=0.3)
    torch.testing.assert_close(ours, dpo(a, b, c, d, beta=0.3), rtol=1e-5, atol=1e-6)


def test_sdpo_by_hand_in_its_authors_form():
    chosen, rejected = torch.tensor([-1.0, -4.0]), torch.tensor([[-3.0, -2.0, -9.0], [-1.0, -2.0, -3.0]])
    reference_chosen, reference_rejected = torch.tensor([-2.0, -3.0]), torch.tensor([[-2.0, -2.5, -8.0], [-2.0] * 3])
    by_hand = []
    for row in range(2):
        gain = chosen[row] - reference_chosen[row]
        total = sum(math.exp(0.7 * (r - q - gain)) for r, q in zip(rejected[row], reference_rejected[row], strict=True))
        by_hand.append(-math.log(1 / (1 + math.exp(math.log(total)))))
    assert sdpo(chosen, rejected, reference_chosen, reference_rejected).tolist() == pytest.approx(by_hand, abs=1e-6)


def test_sdpo_of_a_policy_that_is_its_reference_counts_the_responses():
    one, present = torch.zeros(3), torch.tensor([[True, False, False], [True, True, False], [True] * 3])
    ours = sdpo(one, torch.zeros(3, 3), one, torch.zeros(3, 3), present)
    torch.testing.assert_close(ours, torch.tensor([2.0, 3.0, 4.0]).log())


@given(st.integers(0, 99))
def test_a_missing_response_has_no_say_and_no_gradient(seed):
    draw = torch.Generator().manual_seed(seed)
    chosen, reference = torch.randn(2, 4, generator=draw)
    rejected = torch.randn(4, 3, generator=draw).requires_grad_()
    present = torch.tensor([[True, True, False]]).expand(4, -1)
    ours = sdpo(chosen, rejected, reference, torch.zeros(4, 3), present)
    torch.testing.assert_close(ours, sdpo(chosen, rejected[:, :2], reference, torch.zeros(4, 2)))
    ours.sum().backward()
    assert (rejected.grad[:, 2] == 0).all()
    assert (rejected.grad[:, :2] > 0).all()


def test_sdpo_does_not_overflow_where_a_plain_sum_of_exponentials_would():
    loss = sdpo(torch.tensor([-300.0]), torch.tensor([[0.0, -1.0]]), torch.zeros(1), torch.zeros(1, 2), beta=1.0)
    assert loss.item() == pytest.approx(300 + math.log(1 + math.exp(-1)), rel=1e-6)


def test_a_row_without_a_rejected_response_is_refused():
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least one"):
        sdpo(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2), nothing)


# IPO and SFT


def ipo(a, b, c, d, beta=0.25):
    return ipo_loss(a, b, reference_chosen=c, reference_rejected=d, beta=beta)


def test_ipo_by_hand():
    loss = ipo(*map(torch.tensor, ([-1.0, -5.0], [-3.0, -4.0], [-2.0, -4.0], [-2.5, -4.0])))
    assert loss.tolist() == pytest.approx([(1.5 - 2) ** 2, (-1 - 2) ** 2])


@given(chosen=LOGPROBS, rejected=LOGPROBS)
def test_ipo_of_a_policy_that_is_its_reference_is_its_target_squared(chosen, rejected):
    assert ipo(chosen, rejected, chosen, rejected, beta=0.1).tolist() == pytest.approx([25.0] * 3)


@given(a=LOGPROBS, b=LOGPROBS, c=LOGPROBS, d=LOGPROBS, shift=st.floats(-10, 10))
def test_ipo_does_not_see_a_shift_and_swapped_pairs_differ_by_their_margin(a, b, c, d, shift):
    torch.testing.assert_close(ipo(a + shift, b + shift, c, d), ipo(a, b, c, d), rtol=1e-4, atol=1e-3)
    gap = (a - b) - (c - d)  # (-h - t)^2 = (h - t)^2 + 4 h t
    torch.testing.assert_close(ipo(b, a, d, c), ipo(a, b, c, d) + 8 * gap, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("loss", [ipo, sdpo])
def test_every_beta_must_be_above_zero(loss):
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"beta is 0.0, .* must be above 0"):
        loss(one, one if loss is ipo else one[:, None], one, one if loss is ipo else one[:, None], beta=0.0)


def test_the_likelihood_is_summed_over_tokens():
    assert sft_loss(torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])).tolist() == [3.0, 0.5]


# TRL


ROWS = {
    "prompt_ids": [[3, 4, 5, 6], [7, 8]],
    "chosen_ids": [[9, 10, 11], [9, 12, 13]],
    "rejected_ids": [[9, 10, 14], [15, 16, 17]],
}
OURS = {
    "sigmoid": lambda logps: dpo(*logps.sum(-1), beta=0.3),
    "ipo": lambda logps: ipo(*logps.mean(-1), beta=0.3),  # theirs divides by the tokens
    "sigmoid+sft": lambda logps: dpo(*logps.sum(-1), beta=0.3) + 0.5 * sft_loss(logps[0]) / 3,  # theirs is a mean
}


def models():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = HunYuanDenseV1Config(vocab_size=23, head_dim=8, initializer_range=0.5, **shape)
    return HunYuanDenseV1ForCausalLM(config), HunYuanDenseV1ForCausalLM(config)


def trls(policy, reference, loss, folder):
    """TRL's trainer of one SGD step on both rows."""
    trl = pytest.importorskip("trl", reason="the oracle of these tests")
    from datasets import Dataset, disable_progress_bars

    class Tokenized(trl.DPOTrainer):
        """Takes rows of ids as they are: its own preparation would append an end token to each answer."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    disable_progress_bars()
    words = Tokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "<end>": 2}, unk_token="<unk>"))
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "optim": "sgd", "learning_rate": 0.1}
    settings |= {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "save_strategy": "no", "disable_tqdm": True}
    weights = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]} if "+" in loss else {"loss_type": [loss]}
    return Tokenized(
        model=copy.deepcopy(policy),  # it patches the forward of what it is given
        ref_model=copy.deepcopy(reference),
        args=trl.DPOConfig(
            output_dir=str(folder), beta=0.3, report_to=[], use_cpu=True, bf16=False, **settings, **weights
        ),
        train_dataset=Dataset.from_dict(ROWS),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>"),
    )


def our_loss(policy, reference, loss):
    prompts, lengths = torch.tensor([[3, 4, 5, 6], [7, 8, 1, 1]]), torch.tensor([4, 2])
    answers = torch.tensor([ROWS["chosen_ids"], ROWS["rejected_ids"]]).transpose(0, 1)
    with torch.no_grad():
        frozen = answer_logprobs(reference, prompts, lengths, answers)
    logps = torch.stack([*answer_logprobs(policy, prompts, lengths, answers).unbind(1), *frozen.unbind(1)])
    return OURS[loss](logps).mean()


@pytest.mark.slow  # importing it takes six seconds
@pytest.mark.parametrize("loss", OURS)
def test_losses_and_gradients_on_a_model_equal_trls(tmp_path, loss):
    policy, reference = models()
    trainer = trls(policy, reference, loss, tmp_path)
    batch = trainer.data_collator([{name: column[i] for name, column in ROWS.items()} for i in range(2)])
    theirs = trainer.compute_loss(trainer.model.eval(), batch)
    theirs.backward()
    ours = our_loss(policy, reference, loss)
    ours.backward()
    assert abs(ours.item() - math.log(2)) > 0.01  # not the point where everything is equal
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for mine, other in zip(policy.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", OURS)
def test_a_step_leads_to_the_weights_that_trl_comes_to(tmp_path, loss):
    policy, reference = models()
    trainer = trls(policy, reference, loss, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    our_loss(policy, reference, loss).backward()
    torch.optim.SGD(policy.parameters(), lr=0.1).step()
    for mine, other in zip(policy.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
