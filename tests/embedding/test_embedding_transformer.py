"""Pre-trained encoders: a tiny random BERT built here, against a mean by hand and sentence-transformers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertModel, XLMRobertaModel

from leadre.embedding import transformer
from leadre.embedding.pooling import pool
from leadre.embedding.transformer import transformer_encoder

TEXTS = ["red lipstick", "a", "blue car for a long road", "red car", "long red road for a car a a a a a a a a"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "red", "blue", "car", "for", "a", "long", "road", "lipstick"]
PLAIN = {
    "revision": None,
    "tower": "auto",
    "pooling": "mean",
    "instruction": "",
    "normalize": False,
    "max_tokens": 16,
    "batch_tokens": 16,
    "precision": "fp32",
    "device": "cpu",
}


def _embed(folder, texts, **changed):
    return transformer_encoder(str(folder), **PLAIN | changed)(texts)


@torch.no_grad()
def _states(folder, text):
    ids = [2, *(WORDS.index(word) for word in text.split()), 3]
    ids = [*ids[:15], 3] if len(ids) > 16 else ids
    return BertModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("pooling", "by_hand"),
    [("mean", lambda states: states.mean(0)), ("cls", lambda states: states[0]), ("last", lambda states: states[-1])],
)
def test_each_text_is_pooled_as_if_it_were_alone_and_keeps_its_place(bert_folder, pooling, by_hand):
    vectors = _embed(bert_folder, TEXTS, pooling=pooling)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(_states(bert_folder, text)) for text in TEXTS], atol=1e-5)


def test_normalized_vectors_have_length_one(bert_folder):
    plain, unit = _embed(bert_folder, TEXTS), _embed(bert_folder, TEXTS, normalize=True)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)


def test_the_instruction_stands_before_every_text(bert_folder):
    asked = _embed(bert_folder, ["red car"], instruction="query ")
    np.testing.assert_array_equal(asked, _embed(bert_folder, ["query red car"]))


@pytest.mark.parametrize(("pooling", "mode"), [("mean", "mean"), ("cls", "cls"), ("last", "lasttoken")])
def test_pooling_equals_that_of_sentence_transformers(bert_folder, pooling, mode):
    modules = [Transformer(str(bert_folder), max_seq_length=16), Pooling(16, pooling_mode=mode)]
    theirs = SentenceTransformer(modules=modules, device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(_embed(bert_folder, TEXTS, pooling=pooling), theirs, atol=1e-5)


def test_padding_on_the_left_is_pooled_as_padding_on_the_right():
    states = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    right, left = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    turned = states.clone()
    turned[0] = states[0].roll(1, 0)
    for how in ("mean", "cls", "last"):
        torch.testing.assert_close(pool(turned, left, pooling=how), pool(states, right, pooling=how))


def test_states_in_half_precision_are_pooled_in_full():
    states = torch.full((1, 300, 2), 1.01, dtype=torch.bfloat16)
    pooled = pool(states, torch.ones(1, 300, dtype=torch.long), pooling="mean")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, states[:, 0].float())  # 300 of them added in bf16 would end at 256


def test_half_precision_is_near_to_full(bert_folder):
    full, half = (
        _embed(bert_folder, TEXTS, normalize=True),
        _embed(bert_folder, TEXTS, normalize=True, precision="bf16"),
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1


def test_batches_are_bound_by_tokens_and_begin_with_the_longest():
    lengths = np.array([3, 9, 4, 0, 4, 12, 1])
    batches = [rows.tolist() for rows in transformer._batches(lengths, batch_tokens=10)]
    assert batches == [[5], [1], [2, 4], [0, 6]]  # the 12 tokens of row 5 stand alone, row 3 has none


@pytest.mark.parametrize("batch_tokens", [1, 40, 1000])
def test_the_size_of_a_batch_does_not_change_vectors(bert_folder, batch_tokens):
    wanted = _embed(bert_folder, TEXTS, batch_tokens=16)
    np.testing.assert_allclose(_embed(bert_folder, TEXTS, batch_tokens=batch_tokens), wanted, atol=1e-6)


def _without_special_tokens(bert_folder, folder):
    BertModel.from_pretrained(bert_folder).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    tokenizer._tokenizer.post_processor = None
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_without_tokens_has_the_zero_vector(bert_folder, tmp_path):
    folder = _without_special_tokens(bert_folder, tmp_path)
    x = _embed(folder, ["", "red car"])
    assert not x[0].any()
    assert x[1].any()
    assert _embed(folder, [""]).tolist() == [[0.0] * 16]


def test_more_tokens_than_the_encoder_takes_is_an_error(bert_folder, tmp_path):
    BertModel.from_pretrained(bert_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder, model_max_length=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"max_tokens is 33, but .* takes 32 tokens: use embedding.max_tokens=32"):
        _embed(tmp_path, TEXTS, max_tokens=33)


@pytest.mark.parametrize(("model", "most"), [(BertModel, 32), (XLMRobertaModel, 30)])
def test_an_encoder_has_no_more_tokens_than_positions_whatever_its_tokenizer_says(bert_folder, tmp_path, model, most):
    """RoBERTa begins to count after the number of its padding token."""
    config = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 8, "max_position_embeddings": 32, "pad_token_id": 1}
    model(model.config_class(**config)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length > 10**9
    long = " ".join(["red"] * 40)
    assert _embed(tmp_path, [long], max_tokens=most, batch_tokens=64).shape == (1, 16)
    with pytest.raises(ValueError, match=rf"max_tokens is {most + 1}, but .* takes {most} tokens: use embedding.max_t"):
        _embed(tmp_path, [long], max_tokens=most + 1)


def _with_weights(bert_folder, folder, change):
    BertModel.from_pretrained(bert_folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_missing_are_never_made_up(bert_folder, tmp_path):
    gone = "encoder.layer.1.output.dense.weight"
    _with_weights(bert_folder, tmp_path, lambda weights: {key: x for key, x in weights.items() if key != gone})
    with pytest.raises(ValueError, match=rf"1 of its weights are missing, the first is {gone}\. .*embedding=lsa"):
        _embed(tmp_path, TEXTS)


def test_weights_of_another_shape_are_an_error(bert_folder, tmp_path):
    _with_weights(bert_folder, tmp_path, lambda weights: {key: x[:1].clone() for key, x in weights.items()})
    with pytest.raises(ValueError, match=r"it cannot be loaded: .*embedding=lsa"):
        _embed(tmp_path, TEXTS)


def test_a_folder_that_holds_no_encoder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"it cannot be loaded: .*embedding=lsa"):
        _embed(tmp_path, TEXTS)
