"""Token log-probabilities over the whole vocabulary, with the head applied at the needed positions only.

A prompt has hundreds of tokens and an S-ID five: computing logits for all of them costs more memory than the model.
All functions take any Transformers causal LM whose logits are its output embeddings times the last hidden state
(HunYuan dense, Qwen2, Llama; not those that scale or cap their logits). Of a PEFT model give ``get_base_model()``.
"""

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor
from transformers import PreTrainedModel


def head_logprobs(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of one target token at each given hidden state.

    The softmax is taken in float32 whatever the model's type is: bfloat16 log-probabilities differ by more than
    a preference does.

    Args:
        model: The causal LM whose head is used.
        hidden: Last hidden states ``(..., D)``.
        targets: Token ids ``(...)``.

    Returns:
        ``(...)`` float32, natural logarithm, at most 0.
    """
    head = cast(torch.nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]  # left untyped there
    logits = head(hidden).float()
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten().long(), reduction="none")
    return -losses.view(targets.shape)


def response_logprobs(model: PreTrainedModel, ids: Tensor, positions: Tensor) -> Tensor:
    """Log-probability of the tokens that stand at some positions, each given all tokens before it.

    Rows are padded on the right: under causal attention no earlier token sees the padding, so no mask is needed.

    Args:
        model: The causal LM.
        ids: Token ids ``(B, T)``, right-padded.
        positions: ``(B, L)`` where the wanted tokens stand in ``ids``; -1 where a row has fewer than L.

    Returns:
        ``(B, L)`` float32; 0 where ``positions`` is -1.

    Raises:
        ValueError: If a position is 0 (nothing precedes the first token), below -1, or past the row.
    """
    present = positions >= 0
    if bool(((positions < -1) | (positions == 0) | (positions >= ids.shape[1])).any()):
        raise ValueError(
            f"positions holds {positions.min().item()} to {positions.max().item()} for rows of {ids.shape[1]} tokens, "
            "but a token with a predecessor stands at 1 or later inside its row: use -1 for no token"
        )
    hidden = _last_hidden(model, input_ids=ids)
    at = positions.clamp(min=1)
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    logprobs = head_logprobs(model, hidden[rows, at - 1], ids[rows, at])  # (B, L)
    return logprobs.masked_fill(~present, 0.0)


def answer_logprobs(model: PreTrainedModel, prompts: Tensor, lengths: Tensor, answers: Tensor) -> Tensor:
    """Log-probability of the tokens of several answers to each prompt, reading every prompt once.

    The answers of a row stand behind one another after the prompt and cannot see each other, each at the
    positions it would have alone: the result equals `response_logprobs` on R separate rows (5 tokens an answer
    cost little beside a prompt of hundreds). Needs the ``sdpa`` or ``eager`` attention.

    Args:
        model: The causal LM.
        prompts: Token ids ``(B, T)``, right-padded.
        lengths: ``(B,)`` tokens of each prompt, at least 1.
        answers: Token ids ``(B, R, L)``; all answers have the same length, as S-IDs do.

    Returns:
        ``(B, R, L)`` float32.

    Raises:
        ValueError: If a prompt is empty.
    """
    if bool((lengths < 1).any()):
        raise ValueError(
            f"lengths holds {lengths.min().item()}, but an answer's first token is predicted from a prompt of at least "
            "one token: give every row a prompt"
        )
    num_rows, num_answers, length = answers.shape
    shown = answers[:, :, : length - 1]  # the last token of an answer predicts nothing that is asked for
    ids = torch.cat([prompts, shown.flatten(1)], dim=1)
    hidden = _last_hidden(
        model,
        input_ids=ids,
        attention_mask=_branch_mask(prompts.shape[1], lengths, num_answers, length - 1, dtype=model.dtype),
        position_ids=_branch_positions(prompts.shape[1], lengths, num_answers, length - 1),
    )
    rows = torch.arange(num_rows, device=ids.device)
    first = hidden[rows, lengths - 1][:, None, None].expand(-1, num_answers, 1, -1)  # (B, R, 1, D)
    rest = hidden[:, prompts.shape[1] :].reshape(num_rows, num_answers, length - 1, hidden.shape[-1])
    return head_logprobs(model, torch.cat([first, rest], dim=2), answers)


def _last_hidden(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """The body's last hidden states ``(B, T, D)``, after its final norm."""
    hidden: Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return hidden


def _branch_positions(width: int, lengths: Tensor, num_answers: int, length: int) -> Tensor:
    """Position of each token ``(B, T + R L)``: every answer goes on where its prompt ends."""
    prompt = torch.arange(width, device=lengths.device).expand(len(lengths), -1)
    answer = lengths[:, None] + torch.arange(length, device=lengths.device)
    return torch.cat([prompt, answer.repeat(1, num_answers)], dim=1)


def _branch_mask(width: int, lengths: Tensor, num_answers: int, length: int, *, dtype: torch.dtype) -> Tensor:
    """Additive attention mask ``(B, 1, T + R L, T + R L)``: 0 where a token may look, the type's minimum elsewhere.

    A token sees the real prompt tokens up to itself and the earlier tokens of its own answer.
    """
    index = torch.arange(width + num_answers * length, device=lengths.device)
    branch = torch.where(index < width, -1, (index - width) // max(length, 1))  # -1: the prompt
    causal = index[:, None] >= index[None, :]
    same = (branch[:, None] == branch[None, :]) | (branch[None, :] == -1)
    real = (index >= width) | (index < lengths[:, None])  # (B, T + R L): keys that are no padding
    seen = (causal & same)[None] & real[:, None, :]
    mask = torch.zeros(seen.shape, dtype=dtype, device=lengths.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
