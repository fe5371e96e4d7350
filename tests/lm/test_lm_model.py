"""The model folder: what is saved comes back, and what is not whole is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from leadre.lm.model import AdLM, load, save

SHAPE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def tokenizer():
    vocabulary = {"hello": 0, "world": 1, "<unk>": 2}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    result = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")
    result.add_tokens([f"<a_{code}>" for code in range(4)])
    return result


def tiny(kind="hunyuan", tie=True):
    torch.manual_seed(0)
    if kind == "hunyuan":
        model = HunYuanDenseV1ForCausalLM(
            HunYuanDenseV1Config(**SHAPE, head_dim=8, tie_word_embeddings=tie, eos_token_id=2, pad_token_id=2)
        )
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=tie))
    return AdLM(model, tokenizer(), sid_offsets=(3, 5), soft_ids=(7, 8))


@pytest.mark.parametrize("kind", ["hunyuan", "qwen2"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_comes_back_whole(tmp_path, kind, tie):
    lm = tiny(kind, tie)
    save(lm, tmp_path)
    back = load(tmp_path)
    ids = torch.tensor([[0, 1, 3, 5]])
    with torch.no_grad():
        assert torch.equal(back.model(ids).logits, lm.model.eval()(ids).logits)
    assert back.sid_offsets == (3, 5)
    assert back.soft_ids == (7, 8)
    assert not back.model.training
    assert back.tokenizer("hello <a_2> world").input_ids == lm.tokenizer("hello <a_2> world").input_ids


def test_the_folder_has_the_hugging_face_layout(tmp_path):
    save(tiny(), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "leadre.json"} <= names
    assert json.loads((tmp_path / "leadre.json").read_text()) == {"sid_offsets": [3, 5], "soft_ids": [7, 8]}


def test_the_data_type_is_kept(tmp_path):
    lm = tiny()
    lm.model.to(torch.bfloat16)
    save(lm, tmp_path)
    assert load(tmp_path).model.dtype == torch.bfloat16


def test_sampling_settings_of_an_instruct_model_are_dropped(tmp_path):
    lm = tiny()
    lm.model.generation_config = GenerationConfig(top_k=5, top_p=0.3, temperature=0.2)
    save(lm, tmp_path)
    back = load(tmp_path)
    assert back.model.generation_config.top_k != 5
    GenerationConfig(do_sample=True, top_k=5).save_pretrained(tmp_path)
    assert load(tmp_path).model.generation_config.top_k != 5


def test_a_folder_without_leadre_json_is_refused(tmp_path):
    save(tiny(), tmp_path)
    (tmp_path / "leadre.json").unlink()
    with pytest.raises(ValueError, match=r"has no leadre\.json"):
        load(tmp_path)


def test_missing_weights_are_refused_and_never_drawn_at_random(tmp_path):
    save(tiny(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights lack model\.norm\.weight"):
        load(tmp_path)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path):
    save(tiny()._replace(sid_offsets=(3, 20)), tmp_path)
    with pytest.raises(ValueError, match=r"names the tokens \[20\], but the model has 20 tokens"):
        load(tmp_path)
