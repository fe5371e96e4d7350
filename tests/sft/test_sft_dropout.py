import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from leadre.sft.dropout import drop_out
from tests.small_model import small_model

IDS = torch.arange(6)[None]


def _stream(model):
    """What each part adds to the stream, in the order of the layers."""
    seen = []
    parts = [model.get_input_embeddings()]
    parts += [part for layer in model.base_model.layers for part in (layer.self_attn, layer.mlp)]
    for part in parts:
        part.register_forward_hook(lambda *told: seen.append(told[2][0] if isinstance(told[2], tuple) else told[2]))
    with torch.no_grad():
        model(IDS)
    return seen


def test_each_part_loses_its_share_and_the_rest_is_scaled_up():
    """The embeddings, which nothing dropped comes before, are told number by number."""
    model = small_model(12).train()
    plain = model.get_input_embeddings()(IDS)
    drop_out(model, 0.25)
    torch.manual_seed(1)
    parts = _stream(model)
    assert len(parts) == 5
    for part in parts:
        assert 0.1 < (part == 0).float().mean().item() < 0.4
    kept = parts[0] != 0
    torch.testing.assert_close(parts[0][kept], plain[kept] / 0.75)


def test_it_is_there_in_training_alone_and_can_be_taken_off():
    model = small_model(12).eval()
    with torch.no_grad():
        plain = model(IDS).logits
        handles = drop_out(model, 0.5)
        assert torch.equal(model(IDS).logits, plain)
        assert not torch.equal(model.train()(IDS).logits, plain)
        for handle in handles:
            handle.remove()
        assert torch.equal(model(IDS).logits, plain)


def test_an_architecture_with_other_parts_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match=r"dropout is 0\.1, but a gpt2 has no layers of self_attn and mlp.*dropout=0"):
        drop_out(model, 0.1)
