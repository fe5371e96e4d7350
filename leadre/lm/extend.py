"""The base model: a language model whose vocabulary is extended by the S-ID codes and the learnable tokens."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import polars as pl
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from leadre.lm.config import LMConfig, PretrainedLM, TinyLM
from leadre.lm.model import AdLM, save
from leadre.lm.tokenizer import plain_tokenizer, train_tokenizer

VERSION = 1
log = logging.getLogger(__name__)


def extend(config: LMConfig, catalog: Path, pairs: Path, *, out: Path) -> None:
    """Make or load the language model, and add a token for every S-ID code and learnable token (LEADRE 3.3, 4.2.1).

    The new tokens are ids behind the model's own vocabulary and not words of the tokenizer, so no text can
    ever be tokenized to one of them.
    """
    levels: list[int] = json.loads((catalog / "tokens.json").read_text())["levels"]
    num_soft: int = json.loads((pairs / "prompts.json").read_text())["soft_tokens"]
    match config:
        case TinyLM():
            tokenizer = train_tokenizer(_texts(pairs), config.text_tokens)
            model = _tiny_model(config, num_tokens=len(tokenizer) + num_soft + sum(levels))
            first_new = len(tokenizer)
        case PretrainedLM():
            tokenizer, model = _load_pretrained(config)
            plain_tokenizer(tokenizer)  # refuses a tokenizer that could find control tokens in text
            first_new = max(len(tokenizer), cast(nn.Embedding, model.get_input_embeddings()).num_embeddings)
            # Without mean_resizing=False all new rows come out nearly identical, and beams tie.
            model.resize_token_embeddings(first_new + num_soft + sum(levels), mean_resizing=False)
    start_rows(model, first_new, how=config.sid_start, seed=config.seed)
    offsets = [first_new + num_soft + sum(levels[:level]) for level in range(len(levels))]
    soft_ids = tuple(range(first_new, first_new + num_soft))
    save(AdLM(model=model, tokenizer=tokenizer, sid_offsets=tuple(offsets), soft_ids=soft_ids), out)
    parameters = sum(weight.numel() for weight in model.parameters())
    log.info("%s parameters, %s text tokens, %s S-ID tokens", parameters, first_new, sum(levels))


def start_rows(model: PreTrainedModel, first_new: int, *, how: str, seed: int) -> None:
    """Set the rows of new tokens in the input and output embeddings, in place.

    Args:
        model: The model, already resized.
        first_new: Id of the first new token.
        how: ``normal``: independent draws with the mean and standard deviation of the old rows, element by
            element; ``mean``: the mean old row plus a hundredth of that draw, so that no two rows are equal.
        seed: 0 is a seed.
    """
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # Transformers leaves it untyped
    layers = (model.get_input_embeddings(), head)
    weights = {id(layer.weight): cast(Tensor, layer.weight) for layer in layers if layer is not None}
    with torch.no_grad():
        for weight in weights.values():  # one where the two are tied
            old = weight[:first_new].float()
            draw = torch.randn(len(weight) - first_new, weight.shape[1], generator=generator) * old.std(0)
            weight[first_new:] = (old.mean(0) + (draw if how == "normal" else 0.01 * draw)).to(weight.dtype)


def _tiny_model(config: TinyLM, *, num_tokens: int) -> PreTrainedModel:
    architecture = HunYuanDenseV1Config(
        vocab_size=num_tokens,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads,
        intermediate_size=config.intermediate_size,
        initializer_range=config.initializer_range,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # Transformers draws its start from the global generator alone
        return HunYuanDenseV1ForCausalLM(architecture)


def _load_pretrained(config: PretrainedLM) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model, revision=config.revision)
        model = AutoModelForCausalLM.from_pretrained(
            config.model, revision=config.revision, dtype=getattr(torch, config.dtype)
        )
    except OSError as error:
        raise ValueError(
            f"lm.model is {config.model!r}, which is neither a folder with a Transformers model nor a hub name that "
            "can be reached: give a local folder, or use lm=tiny, which needs no download"
        ) from error
    return cast(PreTrainedTokenizerFast, tokenizer), cast(PreTrainedModel, model)


def _texts(pairs: Path) -> Iterator[str]:
    """The text segments of all training prompts, the corpus of the tokenizer."""
    for path in sorted(pairs.glob("*.train.parquet")):
        if path.name.startswith("next_n"):
            continue  # its prompts are those of the main task
        for column in ("head", "lead", "behaviors", "tail"):
            frame = pl.scan_parquet(path).select(pl.col(column).explode().alias("piece"))
            if column == "behaviors":
                frame = frame.explode("piece")
            texts = frame.filter(pl.col("piece").struct.field("kind") == "text")
            yield from texts.select(pl.col("piece").struct.field("value")).collect().to_series().to_list()
