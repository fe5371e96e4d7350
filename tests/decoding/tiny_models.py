"""What the tests of decoding share: models of four kinds, S-IDs of 4 x 5 x 3 codes, and prompts."""

import itertools

import torch
from transformers import (
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from leadre.decoding.beam_search import sid_tokens

TEXT = 10
SHAPE = {
    "vocab_size": TEXT + 12,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MODELS = {
    "hunyuan": (HunYuanDenseV1ForCausalLM, HunYuanDenseV1Config, {"head_dim": 4}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 4}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
}
TOKENS = sid_tokens((10, 14, 19), (4, 5, 3))  # the vocabulary's last 12 tokens
NORMALIZERS = ["full", "level", "trie"]


def tiny(kind="hunyuan", seed=0, **changes):
    network, config, extra = MODELS[kind]
    torch.manual_seed(seed)
    return network(config(**{**SHAPE, **extra, **changes})).eval()


TINY = {kind: tiny(kind) for kind in MODELS}


def catalog(seed, ads):
    """Some of the 60 S-IDs of 4 x 5 x 3 codes."""
    every = list(itertools.product(*(range(len(tokens)) for tokens in TOKENS)))
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:ads]
    return sorted(every[row] for row in chosen.tolist())


def prompts(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, TEXT, (length,), generator=generator) for length in lengths]


def padded(rows, side="right"):
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, at], mask[number, at] = row, 1
    return ids, mask
