"""What a search is given is checked before anything is read: widths, catalog, model and prompts."""

from collections.abc import Sequence
from inspect import signature
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from leadre.catalog.sids import level_letter
from leadre.catalog.trie import Trie

_HEAD_SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""Configuration keys of models that change the logits after the head, which the search would miss."""


def level_widths(beam_width: int | Sequence[int], *, levels: int) -> tuple[int, ...]:
    """The beams kept at each level.

    Raises:
        ValueError: If one is below 1, or their number is not that of the levels.
    """
    widths = (beam_width,) * levels if isinstance(beam_width, int) else tuple(beam_width)
    if min(widths, default=0) < 1:
        raise ValueError(f"beam_width is {beam_width}: it must be at least 1")
    if len(widths) != levels:
        raise ValueError(
            f"beam_width is {list(widths)}, {len(widths)} numbers, but S-IDs have {levels} codes: "
            "give one number, or one a level"
        )
    return widths


def check_catalog(trie: Trie, sid_tokens: Sequence[range]) -> None:
    """Refuse a trie that is empty or of another catalog than the model's tokens."""
    if not trie.codes or not all(len(codes) for codes in trie.codes):
        raise ValueError("trie is empty: there is no ad to generate; index a catalog that has one")
    if len(trie.codes) != len(sid_tokens):
        raise ValueError(
            f"sid_tokens has {len(sid_tokens)} levels, but trie has {len(trie.codes)}: "
            "the model and the catalog do not belong together; train the model for this catalog"
        )
    for level, (codes, tokens) in enumerate(zip(trie.codes, sid_tokens, strict=True)):
        if int(codes.max()) >= len(tokens):
            raise ValueError(
                f"sid_tokens has {len(tokens)} codes at level {level_letter(level)}, but trie has the code "
                f"{int(codes.max())} there: train the model for this catalog"
            )


def head_of(model: PreTrainedModel, sid_tokens: Sequence[range]) -> nn.Module:
    """The model's head; refuses a model that cannot be searched."""
    head = cast(nn.Module, cast(Any, model).get_output_embeddings())  # Transformers leaves it untyped
    if model.training:
        raise ValueError("model is in training mode, where dropout makes scores random: call model.eval()")
    size = int(cast(Any, head).weight.shape[0])
    if max(tokens.stop for tokens in sid_tokens) > size:
        raise ValueError(
            f"sid_tokens reaches token {max(tokens.stop for tokens in sid_tokens) - 1}, but model has {size} "
            "tokens: extend its vocabulary for this catalog"
        )
    if unsupported := _unsupported(model):
        raise ValueError(
            f"model is a {model.config.model_type} with {', '.join(unsupported)}, which the search does not support: "
            "use a model with full attention of the kind sdpa or eager, position ids, and a plain head"
        )
    return head


def _unsupported(model: PreTrainedModel) -> list[str]:
    """What of a model the search would miss: it must see every token of the prompt, by positions that it is told."""
    settings = model.config.to_dict()
    found = set(settings.get("layer_types") or ()) - {"full_attention"}
    if not settings.get("layer_types") and settings.get("sliding_window"):
        found.add("sliding_window")
    found |= {name for name in _HEAD_SCALES if settings.get(name) not in (None, 1)}
    if settings.get("alibi"):
        found.add("alibi")
    if "position_ids" not in signature(cast(Any, model).get_decoder().forward).parameters:
        found.add("no position_ids")
    attention = cast(str, cast(Any, model.config)._attn_implementation)
    if attention not in ("sdpa", "eager"):
        found.add(f"{attention} attention")
    return sorted(found)


def check_prompts(input_ids: Tensor, prompt: Tensor) -> Tensor:
    """The tokens of each prompt, ``(B,)``.

    Args:
        input_ids: ``(B, T)`` prompts, padded on either side.
        prompt: ``(B, T)`` bool, True at prompt tokens.

    Raises:
        ValueError: If there is no prompt, or one is empty.
    """
    if not len(input_ids):
        raise ValueError("input_ids has no row: give the prompt of at least one user")
    lengths = prompt.sum(1)
    if input_ids.shape != prompt.shape or not bool((lengths > 0).all()):
        raise ValueError(
            f"attention_mask {tuple(prompt.shape)} leaves {int((lengths == 0).sum())} prompts of "
            f"{tuple(input_ids.shape)} input_ids empty: every prompt needs a token, and a mask entry for each"
        )
    return lengths
