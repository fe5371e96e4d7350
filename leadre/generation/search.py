"""The one choice of how ads are searched for: which engine, how many ads a beam, in which numbers."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from leadre.catalog.trie import Trie
from leadre.decoding.beam_search import Beams, beam_search
from leadre.decoding.config import DecodingConfig
from leadre.decoding.filters import Filter
from leadre.decoding.next_n import generate_next_n, merge
from leadre.lm.config import EightBit

Batch = tuple[Tensor, Tensor]
"""Prompts ``(B, T)`` on the device, padded on the right, and their mask."""
Search = Callable[[Tensor, Tensor, Filter | None], Beams]
"""Prompts, their mask and what their users may be shown; out come at least ``num_ads`` places a user, best first."""

log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """How far 8-bit weights leave lists as they were.

    Attributes:
        beam_overlap: The mean share of a user's ads that are in the list of the 8-bit weights too.
        top1_agreement: The share of users whose first ad stays the first.
        calibration_users: How many users that was measured on.
    """

    beam_overlap: float
    top1_agreement: float
    calibration_users: int


def search_of(config: DecodingConfig, model: PreTrainedModel, trie: Trie, sid_tokens: Sequence[range]) -> Search:
    """The search that the settings ask for.

    Args:
        config: Engine, beam widths, normalizer, and ads a beam.
        model: On the device, in evaluation mode.
        trie: The catalog's trie, on the device.
        sid_tokens: Token ids of each level's codes.

    Raises:
        ValueError: If there is not a beam width for every level, or the engine cannot do what is asked.
    """
    if isinstance(config.beam_width, tuple) and len(config.beam_width) != len(sid_tokens):
        raise ValueError(
            f"decoding.beam_width is {list(config.beam_width)}, for {len(config.beam_width)} levels, but S-IDs of this "
            f"catalog have {len(sid_tokens)}: give one number, or one for each level"
        )
    given: dict[str, Any] = {
        "trie": trie,
        "sid_tokens": sid_tokens,
        "beam_width": config.beam_width,
        "normalizer": config.normalizer,
    }
    if config.next_n > 1:
        if config.engine == "graph":
            raise ValueError(
                f"decoding.engine is graph, but decoding.next_n is {config.next_n}: the graph is of one ad a beam; set "
                "decoding.engine=eager"
            )
        several = given | {"next_n": config.next_n}
        return lambda ids, mask, filter: merge(
            generate_next_n(model, ids, mask, filter=filter, **several), config.num_ads
        )
    if config.engine == "graph":
        from leadre.decoding.static_search import StaticSearch

        static = StaticSearch(model, device=trie.codes[0].device, **given)
        return lambda ids, mask, filter: static(ids, mask, filter=filter)
    return lambda ids, mask, filter: beam_search(model, ids, mask, filter=filter, **given)


def quantize(
    config: DecodingConfig,
    weights: EightBit,
    model: PreTrainedModel,
    trie: Trie,
    sid_tokens: Sequence[range],
    calibration: Sequence[Batch],
) -> Kept:
    """Turn a model's weights into 8-bit numbers in place, and measure what that does to lists.

    Args:
        config: The search is done with the same settings before and after.
        weights: The numbers.
        model: On the device, in evaluation mode.
        trie: The catalog's trie, on the device.
        sid_tokens: Token ids of each level's codes.
        calibration: Prompts that the ranges of the activations are taken from, and the lists compared on.
    """
    from leadre.lm import quantized

    before = _lists(search_of(config, model, trie, sid_tokens), calibration, config.num_ads)
    quantized.quantize(model, weights, calibration)
    kept = compare(before, _lists(search_of(config, model, trie, sid_tokens), calibration, config.num_ads))
    log.info("%s weights against those as trained: %s", weights, kept._asdict())
    return kept


def compare(before: Tensor, after: Tensor) -> Kept:
    """How far lists stay the same.

    Args:
        before: ``(B, K)`` catalog rows, -1 where there is no ad.
        after: The same, made otherwise.

    Example:
        >>> compare(torch.tensor([[4, 2], [1, 3]]), torch.tensor([[2, 5], [1, 3]]))
        Kept(beam_overlap=0.75, top1_agreement=0.5, calibration_users=2)
    """
    listed = before >= 0
    found = ((before[:, :, None] == after[:, None, :]).any(2) & listed).sum(1)
    shares = found / listed.sum(1).clamp(min=1)
    return Kept(shares.mean().item(), (before[:, 0] == after[:, 0]).float().mean().item(), len(before))


def _lists(search: Search, prompts: Sequence[Batch], num_ads: int) -> Tensor:
    return torch.cat([search(ids, mask, None).rows[:, :num_ads].cpu() for ids, mask in prompts])
