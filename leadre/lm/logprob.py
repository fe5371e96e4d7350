"""Token log-probabilities, over the vocabulary or over the trie, with the head applied at the needed positions only.

A prompt has hundreds of tokens and an S-ID five: computing logits for all of them costs more memory than the model.
All functions take any Transformers causal LM whose logits are its output embeddings times the last hidden state
(HunYuan dense, Qwen2, Llama; not those that scale or cap their logits). Of a PEFT model give ``get_base_model()``.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from leadre.catalog.trie import Trie, children, move

_BLOCK = 2**26
"""Logits that are in memory at once: a quarter of a gigabyte as float32."""


class TrieSupport(NamedTuple):
    """The codes of the catalog, for probabilities that are taken among them alone.

    Attributes:
        trie: The catalog's trie.
        sid_tokens: Token ids of each level's codes, as `leadre.decoding.beam_search.sid_tokens` gives them.
    """

    trie: Trie
    sid_tokens: Sequence[range]

    def to(self, device: torch.device) -> "TrieSupport":
        """The same on a device; nothing is copied if it is there."""
        return self._replace(trie=move(self.trie, device))


def head_logprobs(model: PreTrainedModel, hidden: Tensor, targets: Tensor, among: Tensor | None = None) -> Tensor:
    """Log-probability of one target token at each given hidden state.

    The softmax is taken in float32 whatever the model's type is: bfloat16 log-probabilities differ by more than
    a preference does. Where the logits of all positions would be too many, they are computed block by block, and
    again in the backward pass: what is in memory does not grow with the batch.

    Args:
        model: The causal LM whose head is used.
        hidden: Last hidden states ``(..., D)``.
        targets: Token ids ``(...)``.
        among: ``(..., K)`` the token ids that each probability is taken among, the target included, in any order; -1
            fills up. None is the whole vocabulary. A target that is alone has log-probability 0 and no gradient.

    Returns:
        ``(...)`` float32, natural logarithm, at most 0.
    """
    head = cast(torch.nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]  # left untyped there
    size = max(1, _BLOCK // int(model.config.vocab_size))
    flat, wanted = hidden.flatten(0, -2), targets.flatten().long()
    kept = None if among is None else among.flatten(0, -2)
    if len(wanted) <= size:
        return _block(head, flat, wanted, kept).view(targets.shape)
    parts = zip(
        torch.split(flat, size),
        torch.split(wanted, size),
        repeat(None) if kept is None else torch.split(kept, size),
        strict=False,
    )
    blocks = [checkpoint(_block, head, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(blocks).view(targets.shape)


def _block(head: torch.nn.Module, hidden: Tensor, targets: Tensor, among: Tensor | None) -> Tensor:
    """`head_logprobs` of P positions at once: ``(P, D)``, ``(P,)`` and ``(P, K)`` to ``(P,)``."""
    logits: Tensor = head(hidden).float()  # (P, V)
    if among is None:
        return -F.cross_entropy(logits, targets, reduction="none")
    others = logits.gather(1, among.clamp(min=0)).masked_fill(among < 0, -torch.inf)
    return logits.gather(1, targets[:, None]).squeeze(1) - others.logsumexp(1)


def answer_logprobs(
    model: PreTrainedModel, prompts: Tensor, lengths: Tensor, answers: Tensor, support: TrieSupport | None = None
) -> Tensor:
    """Log-probability of the tokens of several answers to each prompt, reading every prompt once.

    The answers of a row stand behind one another after the prompt and cannot see each other, each at the
    positions it would have alone: the result is that of R separate rows (5 tokens an answer cost little beside a
    prompt of hundreds). Needs the ``sdpa`` or ``eager`` attention.

    Args:
        model: The causal LM.
        prompts: Token ids ``(B, T)``, right-padded.
        lengths: ``(B,)`` tokens of each prompt, at least 1.
        answers: Token ids ``(B, R, L)``; all answers have the same length, as S-IDs do. The first of a row is there;
            others may be missing: all their tokens are -1.
        support: What a code's probability is taken among: the codes that continue its S-ID to one of the catalog, as
            decoding with the normalizer ``trie`` takes it; None is the whole vocabulary.

    Returns:
        ``(B, R, L)`` float32; 0 where an answer is missing, and, with a ``support``, where a code is the only one.

    Raises:
        ValueError: If a prompt is empty, or an answer is no ad of the ``support``.
    """
    if bool((lengths < 1).any()):
        raise ValueError(
            f"lengths holds {lengths.min().item()}, but an answer's first token is predicted from a prompt of at least "
            "one token: give every row a prompt"
        )
    num_rows, num_answers, length = answers.shape
    present = answers >= 0
    answers = torch.where(present, answers, answers[:, :1])  # whatever stands there is left out in the end
    shown = answers[:, :, : length - 1]  # the last token of an answer predicts nothing that is asked for
    ids = torch.cat([prompts, shown.flatten(1)], dim=1)
    hidden: Tensor = model.base_model(
        input_ids=ids,
        attention_mask=_branch_mask(prompts.shape[1], lengths, num_answers, length - 1, dtype=model.dtype),
        position_ids=_branch_positions(prompts.shape[1], lengths, num_answers, length - 1),
        use_cache=False,
    ).last_hidden_state  # (B, T + R (L - 1), D), after the final norm
    rows = torch.arange(num_rows, device=ids.device)
    first = hidden[rows, lengths - 1][:, None, None].expand(-1, num_answers, 1, -1)  # (B, R, 1, D)
    rest = hidden[:, prompts.shape[1] :].reshape(num_rows, num_answers, length - 1, hidden.shape[-1])
    among = None if support is None else siblings(support, answers)
    return head_logprobs(model, torch.cat([first, rest], dim=2), answers, among).masked_fill(~present, 0.0)


def siblings(support: TrieSupport, answers: Tensor) -> Tensor:
    """The tokens that may stand at each place of some S-IDs, given the codes before it.

    Args:
        support: The catalog's codes, on the device of ``answers``.
        answers: Token ids ``(..., L)`` of ads of the catalog.

    Returns:
        ``(..., L, K)`` int64, ascending, -1 fills up; K is the most that stand at one place.

    Raises:
        ValueError: If an answer is no ad of the catalog.
    """
    flat = answers.flatten(0, -2)  # (N, L)
    nodes = flat.new_zeros(len(flat))
    columns = []
    for level, tokens in enumerate(support.sid_tokens):
        found = children(support.trie, level, nodes)
        token = tokens.start + support.trie.codes[level][found.node].long()
        here = token == flat[found.parent, level]
        if int(here.sum()) != len(flat):
            known = torch.bincount(found.parent[here], minlength=len(flat))
            raise ValueError(
                f"answers holds {flat[int(known.argmin())].tolist()}, which is no ad of the trie: "
                "take the catalog that the model was built for"
            )
        nodes = found.node[here]
        counts = torch.bincount(found.parent, minlength=len(flat))
        place = torch.arange(len(token), device=token.device) - (counts.cumsum(0) - counts)[found.parent]
        column = flat.new_full((len(flat), int(counts.max())), -1)
        column[found.parent, place] = token
        columns.append(column)
    width = max(column.shape[1] for column in columns)
    padded = [F.pad(column, (0, width - column.shape[1]), value=-1) for column in columns]
    return torch.stack(padded, dim=1).view(*answers.shape, width)


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
