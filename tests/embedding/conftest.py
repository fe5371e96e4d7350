"""Shared by the tests of the embeddings: worlds of a few ads, shipped settings, and a tiny random BERT."""

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from leadre import tables
from leadre.embedding.config import EmbeddingConfig
from leadre.embedding.embed import _WHERE
from leadre.embedding.transformer import transformer_encoder

CONF = Path(__file__).parents[2] / "conf"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "red", "blue", "car", "for", "a", "long", "road", "lipstick"]


@pytest.fixture(scope="session")
def embedding_names():
    return sorted(path.stem for path in (CONF / "embedding").glob("*.yaml"))


@pytest.fixture(scope="session")
def embedding_config():
    @cache
    def composed(name):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(overrides=[f"+embedding={name}", "+seed=0"])
        plain = OmegaConf.to_container(config, resolve=True)["embedding"]
        return TypeAdapter(EmbeddingConfig).validate_json(json.dumps(plain), strict=True)

    return composed


@pytest.fixture(scope="session")
def encoder_of():
    """The encoder of a config, from a folder or a snapshot."""

    def load(config, model, revision=None):
        how = {name: value for name, value in asdict(config).items() if name not in _WHERE}
        return transformer_encoder(str(model), revision=revision, **how, device="cpu")

    return load


@pytest.fixture
def make_world(tmp_path):
    """A world of ads, given as descriptions (``ad0``, ``ad1``, ...) or as ad_id to description."""

    def make(ads, name="world"):
        ads = ads if isinstance(ads, dict) else {f"ad{i}": text for i, text in enumerate(ads)}
        folder = tmp_path / name
        folder.mkdir()
        frame = pl.DataFrame(
            {"ad_id": list(ads), "description": list(ads.values())},
            schema={"ad_id": pl.String(), "description": pl.String()},
        ).with_columns(
            *(pl.lit(None, column.dtype).alias(key) for key, column in tables.ADS.columns.items() if column.nullable),
            attributes=pl.lit([], pl.List(pl.String())),
        )
        tables.write(tables.ADS, frame.select(list(tables.ADS.columns)), folder / "ads.parquet")
        return folder

    return make


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def bert_config(bert_folder, embedding_config):
    return replace(embedding_config("transformer"), model=str(bert_folder), max_tokens=16, batch_tokens=32)
