"""A decoder of two narrow layers, for tests that train or search."""

import torch
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM


def small_model(vocab_size: int, *, layers: int = 2) -> HunYuanDenseV1ForCausalLM:
    """The architecture of the paper's backbone with random weights, the same whenever it is made."""
    torch.manual_seed(0)
    config = HunYuanDenseV1Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return HunYuanDenseV1ForCausalLM(config)
