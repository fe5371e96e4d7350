"""The base model: a language model whose vocabulary is extended by the S-ID codes and the learnable tokens."""

import json
import logging
from collections.abc import Iterator, Sequence
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
from leadre.quantizer.load import has_network
from leadre.quantizer.load import load as load_quantizer

VERSION = 2
log = logging.getLogger(__name__)


def extend(config: LMConfig, catalog: Path, pairs: Path, *codes: Path, out: Path) -> None:
    """Make or load the language model, and add a token for every S-ID code and learnable token (LEADRE 3.3, 4.2.1).

    The new tokens are ids behind the model's own vocabulary and not words of the tokenizer, so no text can
    ever be tokenized to one of them.

    Args:
        config: The model, and how the new rows start.
        catalog: Tells the codes of each level.
        pairs: Tells the learnable tokens; their text trains the tiny model's tokenizer.
        codes: The quantizer's folder, read where ``sid_start`` is ``codebook``.
        out: The folder of the result.

    Raises:
        ValueError: If the model cannot be had, or the quantizer has no codebooks to start from.
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
    offsets = [first_new + num_soft + sum(levels[:level]) for level in range(len(levels))]
    spread = 0.01 if config.sid_start == "mean" else 1.0
    start_rows(model, first_new, spread=spread, seed=config.seed)
    if config.sid_start == "codebook":
        rows_from_codebooks(model, first_new, _codebooks(*codes), offsets, seed=config.seed)
    soft_ids = tuple(range(first_new, first_new + num_soft))
    save(AdLM(model=model, tokenizer=tokenizer, sid_offsets=tuple(offsets), soft_ids=soft_ids), out)
    parameters = sum(weight.numel() for weight in model.parameters())
    log.info("%s parameters, %s text tokens, %s S-ID tokens", parameters, first_new, sum(levels))


def start_rows(model: PreTrainedModel, first_new: int, *, spread: float, seed: int) -> None:
    """Set the rows of new tokens in the input and output embeddings, in place.

    A row is the mean of the old rows plus ``spread`` times an independent draw with their standard deviation, element
    by element. With 0 all would be equal, and beams would tie.

    Args:
        model: The model, already resized.
        first_new: Id of the first new token.
        spread: 1 draws rows like the old ones, .01 rows near their mean.
        seed: 0 is a seed.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in _embeddings(model):
            old = weight[:first_new].float()
            draw = torch.randn(len(weight) - first_new, weight.shape[1], generator=generator) * old.std(0)
            weight[first_new:] = (old.mean(0) + spread * draw).to(weight.dtype)


def rows_from_codebooks(
    model: PreTrainedModel, first_new: int, codebooks: Sequence[Tensor], offsets: Sequence[int], *, seed: int
) -> None:
    """Start the rows of S-ID tokens so that codes which are near in their codebook are near as tokens, in place.

    A level's codebook ``(K, d)`` is centered, scaled to unit variance and taken into the model's width by a random
    matrix, which keeps distances about (Johnson & Lindenstrauss 1984); mean and deviation are those of the old rows.
    Our choice: the paper does not say how rows start. Levels without a codebook (the extra code) keep their start.

    Args:
        model: The model, already resized and started.
        first_new: Id of the first new token.
        codebooks: The codebook of each quantizer level.
        offsets: Token id of code 0 of each level of an S-ID, the extra code's last.
        seed: 0 is a seed.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in _embeddings(model):
            old = weight[:first_new].float()
            for codebook, offset in zip(codebooks, offsets, strict=False):
                centered = codebook.float() - codebook.float().mean(0)
                unit = centered / centered.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
                width = codebook.shape[1]
                draw = unit @ torch.randn(width, weight.shape[1], generator=generator) / width**0.5
                weight[offset : offset + len(codebook)] = (old.mean(0) + draw * old.std(0)).to(weight.dtype)


def _embeddings(model: PreTrainedModel) -> list[Tensor]:
    """The input and the output embedding; one where the two are tied."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # Transformers leaves it untyped
    layers = (model.get_input_embeddings(), head)
    return list({id(layer.weight): cast(Tensor, layer.weight) for layer in layers if layer is not None}.values())


def _codebooks(codes: Path) -> list[Tensor]:
    if not has_network(codes):
        raise ValueError(
            f"lm.sid_start is 'codebook', but the codes of {codes} were made without codebooks: use "
            "lm.sid_start=normal, or a quantizer that learns them"
        )
    return [codebook.detach() for codebook in load_quantizer(codes).codebooks]


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
