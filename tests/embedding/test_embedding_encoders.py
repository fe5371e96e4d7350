"""The paper's eleven encoders: each config on a tiny random model of its architecture, against the reference library.

The checkpoints are saved as the hub ships them, with the heads that an encoder leaves aside.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ElectraConfig,
    ElectraForPreTraining,
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from experiments.table3_lines import PAPER
from leadre.embedding.config import TransformerConfig

WORDS = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "<cls>",
    "<sep>",
    "red",
    "blue",
    "car",
    "for",
    "a",
    "long",
    "road",
    "lipstick",
]
ID = {word: row for row, word in enumerate(WORDS)}
TEXTS = ["red lipstick", "a", "blue car for a long road", "red car", "long red road for a car a a a a a lipstick"]
MAX_TOKENS = 10
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT_LIKE = {"vocab_size": len(WORDS), "max_position_embeddings": 32, "initializer_range": 0.5, **LAYERS}
CLIP_TEXT = {
    **BERT_LIKE,
    "bos_token_id": ID["<s>"],
    "eos_token_id": ID["<sep>"],
    "pad_token_id": ID["<sep>"],
    "max_position_embeddings": MAX_TOKENS,
    "projection_dim": 8,
}


def _bert():
    return BertModel(BertConfig(**BERT_LIKE, pad_token_id=1))


def _xlm_roberta():
    return XLMRobertaModel(XLMRobertaConfig(**BERT_LIKE, pad_token_id=1))


def _clip():
    vision = {**LAYERS, "image_size": 4, "patch_size": 2}
    return CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=vision, projection_dim=8))


ENCODERS = {
    "hunyuan": lambda: HunYuanDenseV1ForCausalLM(
        HunYuanDenseV1Config(**BERT_LIKE, num_key_value_heads=1, head_dim=8, pad_token_id=1, eos_token_id=2)
    ),
    "e5_large_instruct": _xlm_roberta,
    "bge_m3": _xlm_roberta,
    "bert_chinese": lambda: BertForMaskedLM(BertConfig(**BERT_LIKE, pad_token_id=1)),
    "electra_chinese": lambda: ElectraForPreTraining(ElectraConfig(**BERT_LIKE, embedding_size=8, pad_token_id=1)),
    "sentence_bert_l12": _bert,
    "sentence_bert_l6": _bert,
    "xlnet_chinese": lambda: XLNetLMHeadModel(
        XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=2, n_head=2, d_inner=32, initializer_range=0.5)
    ),
    "clip_32": _clip,
    "clip_16": _clip,
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ),
}
HOW = {
    "hunyuan": ("auto", "last", "", 512),
    "e5_large_instruct": ("auto", "mean", "", 512),
    "bge_m3": ("auto", "cls", "", 8192),
    "bert_chinese": ("auto", "mean", "", 512),
    "electra_chinese": ("auto", "mean", "", 512),
    "sentence_bert_l12": ("auto", "mean", "", 128),
    "sentence_bert_l6": ("auto", "mean", "", 256),
    "xlnet_chinese": ("auto", "mean", "", 512),
    "clip_32": ("clip_text", "projection", "", 77),
    "clip_16": ("clip_text", "projection", "", 77),
    "t5": ("t5_encoder", "mean", "", 512),
}
"""How each checkpoint's authors, or its kind, want it read: tower, pooling, instruction and most tokens."""
TEMPLATES = {
    "hunyuan": "$A",
    "xlnet_chinese": "$A:0 <sep>:0 <cls>:2",
    "clip_32": "<s> $A <sep>",
    "clip_16": "<s> $A <sep>",
    "t5": "$A </s>",
}


def _save_tokenizer(folder, stem, side):
    tokenizer = Tokenizer(WordLevel(ID, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=TEMPLATES.get(stem, "<cls> $A <sep>"),
        special_tokens=[(word, ID[word]) for word in WORDS[:6]],
    )
    names = {"pad_token": "<sep>" if "clip" in stem else "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=side, model_max_length=MAX_TOKENS, **names
    ).save_pretrained(folder)


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def stem(request):
    return request.param


@pytest.fixture(scope="module", params=["left", "right"])
def folder(request, stem, tmp_path_factory):
    path = tmp_path_factory.mktemp(stem)
    torch.manual_seed(0)
    ENCODERS[stem]().save_pretrained(path)
    _save_tokenizer(path, stem, request.param)
    return str(path)


@pytest.fixture
def ours(encoder_of):
    def embed(folder, config, texts, **changed):
        config = replace(config, max_tokens=MAX_TOKENS, batch_tokens=4 * MAX_TOKENS, **changed)
        return encoder_of(config, folder)(texts)

    return embed


@torch.no_grad()
def _theirs(folder, config, texts):
    """Each text alone through the reference library, at length one."""
    if config.pooling == "projection":
        model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        tokens = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
        x = np.concatenate([model.get_text_features(**token).pooler_output.numpy() for token in tokens])
        return x / np.linalg.norm(x, axis=1, keepdims=True)
    mode = {"mean": "mean", "cls": "cls", "last": "lasttoken"}[config.pooling]
    modules = [Transformer(folder, max_seq_length=MAX_TOKENS), Pooling(16, pooling_mode=mode)]
    model = SentenceTransformer(modules=modules, device="cpu")
    return np.stack([model.encode(text, normalize_embeddings=True, show_progress_bar=False) for text in texts])


def test_every_encoder_on_disk_is_tested_and_there_are_the_eleven_of_the_paper(embedding_config, embedding_names):
    kinds = {name: embedding_config(name) for name in embedding_names}
    of_the_paper = {name for name, config in kinds.items() if isinstance(config, TransformerConfig)} - {"transformer"}
    assert of_the_paper == set(ENCODERS)
    assert len(of_the_paper) == 11


def test_each_checkpoint_is_read_as_it_was_made_to_be(stem, embedding_config):
    config = embedding_config(stem)
    assert (config.tower, config.pooling, config.instruction, config.max_tokens) == HOW[stem]
    assert config.normalize


def test_padded_batches_equal_each_text_alone_in_the_reference_library(folder, stem, embedding_config, ours):
    config = embedding_config(stem)
    x, theirs = ours(folder, config, TEXTS), _theirs(folder, config, TEXTS)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, theirs, atol=1e-5)
    assert np.linalg.norm(theirs[0] - theirs[1]) > 1e-3


@pytest.mark.parametrize("name", ["clip_32", "clip_16"])
def test_a_text_that_is_too_long_for_clip_keeps_its_end_token(name, tmp_path, embedding_config, ours):
    torch.manual_seed(0)
    model = _clip().eval()
    model.save_pretrained(tmp_path)
    _save_tokenizer(tmp_path, name, "right")
    ids = [ID[word] for word in TEXTS[-1].split()][: MAX_TOKENS - 2]
    with torch.no_grad():
        by_hand = model.get_text_features(torch.tensor([[ID["<s>"], *ids, ID["<sep>"]]])).pooler_output
    x = ours(str(tmp_path), embedding_config(name), [TEXTS[-1]], normalize=False)
    np.testing.assert_allclose(x, by_hand, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("clip_32", "clip"), ("t5", "t5")])
def test_the_whole_of_clip_or_t5_is_refused_with_the_tower_that_reads_text(
    name, kind, tmp_path, embedding_config, ours
):
    ENCODERS[name]().save_pretrained(tmp_path)
    _save_tokenizer(tmp_path, name, "right")
    config = embedding_config(name)
    with pytest.raises(
        ValueError, match=rf"tower is 'auto', .* \({kind}\) needs more than a text: use embedding.tower={config.tower}"
    ):
        ours(str(tmp_path), config, TEXTS, tower="auto", pooling="mean")


def test_each_head_has_its_row_of_the_papers_table(stem):
    head = (Path(__file__).parents[2] / "conf" / "embedding" / f"{stem}.yaml").read_text()
    (told,) = re.findall(r"Table 3 has ((?:[\d.]+ ){4})%", head)
    assert tuple(map(float, told.split())) == PAPER[stem]
