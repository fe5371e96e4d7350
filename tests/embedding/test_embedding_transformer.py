"""Pre-trained encoders: a tiny random BERT built here, against a mean by hand and sentence-transformers."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from leadre.embedding.pooling import pool
from leadre.embedding.transformer import sentence_transformer_vectors, transformer_vectors

TEXTS = ["red lipstick", "a", "blue car for a long road", "red car", "long red road for a car a a a a a a a a"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "red", "blue", "car", "for", "a", "long", "road", "lipstick"]
PLAIN = {
    "revision": None,
    "instruction": "",
    "normalize": False,
    "max_tokens": 16,
    "batch_size": 2,
    "precision": "fp32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
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
    return str(path)


@torch.no_grad()
def _states(folder, text):
    ids = [2, *(WORDS.index(word) for word in text.split()), 3]
    ids = [*ids[:15], 3] if len(ids) > 16 else ids
    return BertModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("pooling", "by_hand"),
    [("mean", lambda states: states.mean(0)), ("cls", lambda states: states[0]), ("last", lambda states: states[-1])],
)
def test_each_text_is_pooled_as_if_it_were_alone_and_keeps_its_place(folder, pooling, by_hand):
    vectors = transformer_vectors(TEXTS, model=folder, pooling=pooling, **PLAIN)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(_states(folder, text)) for text in TEXTS], atol=1e-5)


def test_normalized_vectors_have_length_one(folder):
    plain = transformer_vectors(TEXTS, model=folder, pooling="mean", **PLAIN)
    unit = transformer_vectors(TEXTS, model=folder, pooling="mean", **PLAIN | {"normalize": True})
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)


def test_the_instruction_stands_before_every_text(folder):
    asked = transformer_vectors(["red car"], model=folder, pooling="mean", **PLAIN | {"instruction": "query "})
    written = transformer_vectors(["query red car"], model=folder, pooling="mean", **PLAIN)
    np.testing.assert_array_equal(asked, written)


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_pooling_equals_that_of_sentence_transformers(folder, tmp_path, mode):
    encoder = Transformer(folder)
    SentenceTransformer(modules=[encoder, Pooling(16, pooling_mode=mode)], device="cpu").save(str(tmp_path / "st"))
    theirs = sentence_transformer_vectors(TEXTS, model=str(tmp_path / "st"), **PLAIN)
    ours = transformer_vectors(
        TEXTS, model=folder, pooling={"mean": "mean", "cls": "cls", "lasttoken": "last"}[mode], **PLAIN
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_padding_on_the_left_is_pooled_as_padding_on_the_right():
    states = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    right, left = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    turned = states.clone()
    turned[0] = states[0].roll(1, 0)
    for how in ("mean", "cls", "last"):
        torch.testing.assert_close(pool(turned, left, pooling=how), pool(states, right, pooling=how))


@pytest.mark.parametrize("model", ["", "missing"])
def test_missing_weights_tell_what_can_be_done(tmp_path, model):
    (tmp_path / "missing").mkdir()
    remedy = r"could not be loaded .* local folder .* embedding=lsa"
    name = str(tmp_path / "missing") if model else "no/such-model"
    with pytest.raises(ValueError, match=remedy):
        transformer_vectors(["a"], model=name, pooling="mean", **PLAIN)
    with pytest.raises(ValueError, match=remedy):
        sentence_transformer_vectors(["a"], model=name, **PLAIN)
