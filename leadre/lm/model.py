"""A language model that knows S-IDs, and its folder: the Hugging Face layout and ``leadre.json``."""

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from leadre.lm.vocabulary import ABOUT, load_vocabulary


class AdLM(NamedTuple):
    """A causal language model whose vocabulary holds the S-ID codes (LEADRE 3.2, 4.3.1).

    Attributes:
        model: Any Transformers causal language model.
        tokenizer: Its tokenizer.
        sid_offsets: Token id of code 0 of each level: code ``c`` of level ``l`` is ``sid_offsets[l] + c``.
        soft_ids: Token ids of the learnable tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    sid_offsets: tuple[int, ...]
    soft_ids: tuple[int, ...]


def save(lm: AdLM, folder: Path) -> None:
    """Write a model folder: ``model.safetensors``, ``config.json``, ``tokenizer.json`` and ``leadre.json``.

    The model's generation settings are not kept: S-IDs are decoded by ``leadre.decoding`` alone, and sampling
    settings of an instruct model would only mislead (they filter beams silently in ``generate``).
    """
    lm.model.generation_config = _plain_generation()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    about = {"sid_offsets": list(lm.sid_offsets), "soft_ids": list(lm.soft_ids)}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> AdLM:
    """Load what `save` wrote: for evaluation, on the CPU, in its data type on disk; never from a hub.

    Raises:
        ValueError: If the folder has no ``leadre.json``, if its tokens are not in the vocabulary, or if
            weights are missing.
    """
    vocabulary = load_vocabulary(folder)
    lm = AdLM(_weights(folder), *vocabulary)
    _check_vocabulary(lm, folder)
    return lm


def load_to_train(folder: Path, precision: str) -> AdLM:
    """`load`, with weights in float32 unless the precision is ``bf16-true``: small steps would be rounded away."""
    lm = load(folder)
    lm.model.to(torch.bfloat16 if precision == "bf16-true" else torch.float32)  # type: ignore[arg-type]
    return lm


def _plain_generation() -> GenerationConfig:
    return GenerationConfig()  # type: ignore[no-untyped-call]  # Transformers leaves its __init__ untyped


def _weights(folder: Path) -> PreTrainedModel:
    read: Any = AutoModelForCausalLM.from_pretrained  # its declared type knows no loading report
    model, report = read(folder, local_files_only=True, output_loading_info=True, generation_config=_plain_generation())
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(str(key) for key in [*report["missing_keys"], *report["mismatched_keys"]])
        raise ValueError(
            f"folder is {folder}, whose weights lack {', '.join(missing)}: "
            "they would be random numbers; write the folder anew"
        )
    return cast(PreTrainedModel, model.eval())


def _check_vocabulary(lm: AdLM, folder: Path) -> None:
    size = cast(torch.nn.Embedding, lm.model.get_input_embeddings()).weight.shape[0]
    outside = [token for token in (*lm.sid_offsets, *lm.soft_ids) if not 0 <= token < size]
    if outside:
        raise ValueError(
            f"folder is {folder}, whose {ABOUT} names the tokens {outside}, but the model has {size} tokens: "
            "the two files are of different models; write the folder anew"
        )
