"""Tuning steps as they are done with plain Transformers and TRL, beside ours, on the same rows.

Each step is a function of a model to which gradients are added; `Step` is what it must agree on with the others.
"""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from benchmarks.beam_peers import SID_TOKENS, TEXT_TOKENS, VOCABULARY
from leadre.alignment.losses import dpo_loss
from leadre.lm.encode import PROMPT, RESPONSE
from leadre.lm.logprob import answer_logprobs
from leadre.lm.rows import Rows
from leadre.sft.batches import Batch, collate, num_learned
from leadre.sft.module import learned_logprobs
from leadre.sft.trees import Groups, alone
from leadre.training.batches import bucketed_plan

LEVELS = len(SID_TOKENS)
BETA = 0.1
IGNORED = -100
_WORD = "t"


class Step(NamedTuple):
    """What one optimizer step would see."""

    loss: float
    gradient_norm: float


class Pairs(NamedTuple):
    """B prompts with a chosen and a rejected answer.

    Attributes:
        prompts: ``(B, T)`` right-padded with 0.
        lengths: ``(B,)`` tokens of each prompt.
        answers: ``(B, 2, L)`` the chosen and the rejected S-ID.
        reference: ``(B, 2)`` their summed log-probabilities under the reference.
    """

    prompts: Tensor
    lengths: Tensor
    answers: Tensor
    reference: Tensor


def prompt_lengths(count: int, *, middle: float, cap: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Lengths of prompts: log-normal, as those of users are (many are short, some fill the budget)."""
    drawn: NDArray[np.int64] = np.clip(rng.lognormal(np.log(middle), 0.6, count), 8, cap).astype(np.int64)
    return drawn


def random_texts(lengths: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Texts of so many tokens."""
    return [rng.integers(0, TEXT_TOKENS, length) for length in lengths]


def random_rows(lengths: NDArray[np.int64], rng: np.random.Generator) -> Rows:
    """Prompts of so many tokens, each with an S-ID as its response."""
    return rows_of([np.concatenate([text, random_sids(1, rng)[0]]) for text in random_texts(lengths, rng)])


def random_sids(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Token ids ``(N, L)`` of S-IDs."""
    return np.column_stack([rng.integers(level.start, level.stop, count) for level in SID_TOKENS])


def rows_of(texts: Sequence[NDArray[np.int64]]) -> Rows:
    """Rows of tokens that end with an S-ID, their response."""
    kinds = [np.repeat([PROMPT, RESPONSE], [len(text) - LEVELS, LEVELS]).astype(np.uint8) for text in texts]
    return Rows(
        ids=np.concatenate(texts).astype(np.int32),
        kinds=np.concatenate(kinds),
        offsets=np.concatenate([[0], np.cumsum([len(text) for text in texts])]),
        targets=np.zeros(len(texts), dtype=np.int32),
    )


def texts_of(rows: Rows) -> list[NDArray[np.int64]]:
    """The tokens of each row."""
    return [part.astype(np.int64) for part in np.split(rows.ids, rows.offsets[1:-1])]


def pad_efficiency(lengths: NDArray[np.int64], plan: Sequence[NDArray[np.int64]]) -> float:
    """The share of a plan's padded tokens that are no padding."""
    return float(lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in plan))


def sft_plain(model: PreTrainedModel, rows: Rows, *, batch_size: int) -> Step:
    """Rows in the order they come, padded, ``labels`` given to the model, gradients accumulated."""
    texts = texts_of(rows)
    total = 0.0
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        ids = _padded(some)
        labels = torch.full_like(ids, IGNORED)
        for row, text in enumerate(some):
            labels[row, len(text) - LEVELS : len(text)] = torch.from_numpy(text[-LEVELS:])
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(text)] for text in some])
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss * len(some) / len(texts)
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return _step(model, total)


def sft_ours(model: PreTrainedModel, rows: Rows, groups: Groups, *, batch_size: int) -> Step:
    """The product's own batches and loss, gradients accumulated over all of them."""
    learned = num_learned(rows, groups.begins, loss_on="response")
    everything = np.arange(len(groups.lengths))
    total = 0.0
    for which in bucketed_plan(groups.lengths, groups.sizes, batch_size=batch_size, epochs=1, seed=0):
        batch = collate(rows, groups.begins, learned, which, everything, loss_on="response")
        loss = -(batch.weights * learned_logprobs(model, batch)).sum() / batch.total
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return _step(model, total)


def dpo_plain(model: PreTrainedModel, pairs: Pairs, reference: PreTrainedModel | None) -> Step:
    """Chosen and rejected rows in one padded batch, logits of all positions; the reference in the step, or ahead."""
    logprobs = _summed(model, pairs)
    if reference is None:
        known = pairs.reference
    else:
        with torch.no_grad():
            known = _summed(reference, pairs)
    gap = (logprobs[:, 0] - logprobs[:, 1]) - (known[:, 0] - known[:, 1])
    loss = -F.logsigmoid(BETA * gap).mean()
    torch.autograd.backward(loss)
    return _step(model, float(loss.detach()))


def dpo_ours(model: PreTrainedModel, pairs: Pairs) -> Step:
    """The prompt once, both answers behind it, logits of the answers alone, the reference ahead."""
    chosen, rejected = answer_logprobs(model, pairs.prompts, pairs.lengths, pairs.answers).sum(-1).unbind(1)
    loss = dpo_loss(
        chosen,
        rejected,
        reference_chosen=pairs.reference[:, 0],
        reference_rejected=pairs.reference[:, 1],
        beta=BETA,
        label_smoothing=0.0,
    ).mean()
    torch.autograd.backward(loss)
    return _step(model, float(loss.detach()))


def batch_of(rows: Rows, which: NDArray[np.int64], device: torch.device) -> Batch:
    """Some rows as one optimizer step's batch."""
    begins = alone(rows.offsets).begins
    learned = num_learned(rows, begins, loss_on="response")
    batch = collate(rows, begins, learned, which, which, loss_on="response")
    tensors: dict[str, Any] = {name: x.to(device) for name, x in batch._asdict().items() if isinstance(x, Tensor)}
    return batch._replace(**tensors)


def pairs_of(
    lengths: NDArray[np.int64],
    reference: PreTrainedModel,
    rng: np.random.Generator,
    device: torch.device | None = None,
) -> Pairs:
    """Random pairs, with what the reference says of them."""
    texts = random_texts(lengths, rng)
    answers = np.stack([random_sids(2, rng) for _ in lengths])
    tensors = (_padded(texts), torch.from_numpy(lengths), torch.from_numpy(answers), torch.empty(0))
    pairs = Pairs(*(tensor.to(device) for tensor in tensors))
    with torch.no_grad():
        return pairs._replace(reference=_summed(reference, pairs))


def train_with_trl_sft(model: PreTrainedModel, rows: Rows, *, batch_size: int) -> None:
    """One epoch of TRL's SFTTrainer over tokenized rows, the loss on the response alone."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    texts = texts_of(rows)
    data = Dataset.from_dict(
        {
            "input_ids": [text.tolist() for text in texts],
            "labels": [[IGNORED] * (len(text) - LEVELS) + text[-LEVELS:].tolist() for text in texts],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(max_length=None, **_trl(folder, batch_size))
        SFTTrainer(model, args=settings, train_dataset=data, processing_class=_tokenizer()).train()


def train_with_trl_dpo(model: PreTrainedModel, reference: PreTrainedModel, pairs: Pairs, *, batch_size: int) -> None:
    """One epoch of TRL's DPOTrainer, its reference in each step as is its default.

    It takes text alone, so a token is a word here; it ends each answer with one token more.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    prompts = [row[:length] for row, length in zip(pairs.prompts, pairs.lengths, strict=True)]
    columns = {"prompt": [_words(prompt) for prompt in prompts]} | {
        name: [f" {_words(answer)} {_WORD}0" for answer in pairs.answers[:, place]]
        for place, name in enumerate(("chosen", "rejected"))
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(beta=BETA, max_length=None, **_trl(folder, batch_size))
        data = Dataset.from_dict(columns)
        DPOTrainer(model, reference, args=settings, train_dataset=data, processing_class=_tokenizer()).train()


def _words(ids: Tensor) -> str:
    return " ".join(f"{_WORD}{token}" for token in ids.tolist())


def _trl(folder: str, batch_size: int) -> dict[str, Any]:
    return {
        "output_dir": str(Path(folder)),
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "activation_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "max_grad_norm": 1.0,
    }


def _tokenizer() -> Any:  # noqa: ANN401  # Transformers leaves its __init__ untyped
    """A word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(
        models.WordLevel({f"{_WORD}{token}": token for token in range(VOCABULARY)}, unk_token=f"{_WORD}0")
    )
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrap: Any = PreTrainedTokenizerFast
    return wrap(tokenizer_object=plain, pad_token=f"{_WORD}0", eos_token=f"{_WORD}0")


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own with the same weights; TRL changes the one it is given."""
    return copy.deepcopy(model)


def _summed(model: PreTrainedModel, pairs: Pairs) -> Tensor:
    """Summed log-probability of both answers ``(B, 2)``, each behind a prompt of its own, from all logits."""
    texts = [
        torch.cat([row[:length], answer])
        for place in (0, 1)
        for row, length, answer in zip(pairs.prompts, pairs.lengths, pairs.answers[:, place], strict=True)
    ]
    ids = pad_sequence(texts, batch_first=True)
    lengths = pairs.lengths.repeat(2) + LEVELS
    place = torch.arange(ids.shape[1], device=ids.device)
    mask = place < lengths[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    answer = mask & (place >= lengths[:, None] - LEVELS)
    summed: Tensor = (logprobs * answer[:, 1:]).sum(1)
    return summed.view(2, -1).T


def _padded(texts: Sequence[NDArray[np.int64]]) -> Tensor:
    return pad_sequence([torch.from_numpy(text) for text in texts], batch_first=True)


def _step(model: PreTrainedModel, loss: float) -> Step:
    """The loss and the norm of the gradients, which are set back."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    model.zero_grad(set_to_none=True)
    return Step(loss, norm)
