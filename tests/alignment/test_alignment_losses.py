"""DPO and RRHF by hand, by identity, and DPO against TRL."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, PreTrainedTokenizerFast

from leadre.alignment.losses import dpo_loss, rank_loss, rrhf_loss
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
    by_hand = (math.log(1 + math.exp(-0.1 * 2)) + math.log(1 + math.exp(0.1 * 1))) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-7)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@given(chosen=LOGPROBS, rejected=LOGPROBS)
def test_a_policy_that_is_its_reference_has_loss_log_2_exactly(label_smoothing, chosen, rejected):
    loss = dpo(chosen, rejected, chosen, rejected, label_smoothing=label_smoothing)
    assert loss == torch.tensor(2.0).log()


@given(a=LOGPROBS, b=LOGPROBS, c=LOGPROBS, d=LOGPROBS)
def test_swapping_chosen_and_rejected_swaps_the_roles_of_the_smoothed_label(a, b, c, d):
    smooth = 0.2
    swapped = dpo(b, a, d, c, label_smoothing=smooth)
    expected = (1 - smooth) * dpo(b, a, d, c) + smooth * dpo(a, b, c, d)
    torch.testing.assert_close(swapped, expected, rtol=1e-5, atol=1e-6)
    gap = 0.1 * ((a - b) - (c - d)).mean()  # -log s(-x) = -log s(x) + x
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
    assert rank_loss(scores, rewards).item() == pytest.approx((1 + 3) / 2)


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
    assert rrhf_loss(logprobs, rewards, sft_weight=0.5).item() == pytest.approx(1 + 0.5 * 4)


def test_dpo_on_a_model_equals_trl(tmp_path):
    trl = pytest.importorskip("trl", reason="the oracle of this test")
    from datasets import Dataset, disable_progress_bars

    class Tokenized(trl.DPOTrainer):
        """Takes rows of ids as they are: its own preparation would append an end token to each answer."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    disable_progress_bars()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = HunYuanDenseV1Config(vocab_size=23, head_dim=8, initializer_range=0.5, **shape)
    policy, reference = HunYuanDenseV1ForCausalLM(config), HunYuanDenseV1ForCausalLM(config)
    rows = {
        "prompt_ids": [[3, 4, 5, 6], [7, 8]],
        "chosen_ids": [[9, 10, 11], [9, 12, 13]],
        "rejected_ids": [[9, 10, 14], [15, 16, 17]],
    }
    words = Tokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "<end>": 2}, unk_token="<unk>"))
    trainer = Tokenized(
        model=copy.deepcopy(policy),  # it patches the forward of what it is given
        ref_model=copy.deepcopy(reference),
        args=trl.DPOConfig(output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False),
        train_dataset=Dataset.from_dict(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>"),
    )
    batch = trainer.data_collator([{name: column[i] for name, column in rows.items()} for i in range(2)])
    theirs = trainer.compute_loss(trainer.model.eval(), batch)
    theirs.backward()

    prompts, lengths = torch.tensor([[3, 4, 5, 6], [7, 8, 1, 1]]), torch.tensor([4, 2])
    answers = torch.tensor([rows["chosen_ids"], rows["rejected_ids"]]).transpose(0, 1)
    chosen, rejected = answer_logprobs(policy, prompts, lengths, answers).sum(-1).unbind(1)
    with torch.no_grad():
        reference_chosen, reference_rejected = answer_logprobs(reference, prompts, lengths, answers).sum(-1).unbind(1)
    ours = dpo(chosen, rejected, reference_chosen, reference_rejected, beta=0.3)
    ours.backward()
    assert abs(ours.item() - math.log(2)) > 0.01  # not the point where everything is equal
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for mine, other in zip(policy.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
