"""A model, a catalog and prompts so small that a list is made in milliseconds."""

import json
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, PreTrainedTokenizerFast

from leadre import tables
from leadre.catalog import sids as names
from leadre.catalog import trie as tries
from leadre.decoding.config import DecodingConfig
from leadre.lm.model import AdLM, save

SIDS = [[0, 0], [0, 2], [1, 1], [2, 0], [2, 1], [2, 2]]
SETTINGS = {
    "beam_width": 6,
    "num_ads": 3,
    "normalizer": "full",
    "next_n": 1,
    "filters": None,
    "engine": "eager",
    "weights": "as_trained",
    "tokens_per_batch": 8,
    "shard_users": 3,
}


def words_of(number):
    """The prompt of a user: one to five words, which are token ids."""
    generator = torch.Generator().manual_seed(number)
    length = int(torch.randint(1, 6, (), generator=generator))
    return torch.randint(1, 10, (length,), generator=generator).tolist()


def save_prompts(path, users, *, first=0, table=tables.PROMPTS):
    """One prompt a user; the prompt depends on the user's place alone."""
    rows = [
        {
            "user_id": user,
            "ad_id": "ad0",
            "following": [],
            "head": [],
            "lead": [],
            "behaviors": [],
            "tail": [{"kind": "text", "value": str(word)} for word in words_of(first + number)],
        }
        for number, user in enumerate(users)
    ]
    kept = [{name: row[name] for name in table.columns} for row in rows]
    pl.DataFrame(kept, schema=table.schema).write_parquet(path, row_group_size=4)


def _save_model(folder):
    torch.manual_seed(0)
    shape = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5}
    network = HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config(**shape, **heads, eos_token_id=None))
    words = Tokenizer(models.BPE({str(word): word for word in range(10)}, []))
    save(AdLM(network, PreTrainedTokenizerFast(tokenizer_object=words), (10, 13), ()), folder)


def _save_catalog(folder):
    listed = {"ad_id": [f"ad{row}" for row in range(6)], "sid": SIDS, "name": [names.name(sid) for sid in SIDS]}
    tables.write(tables.SIDS, pl.DataFrame(listed, schema=tables.SIDS.schema), folder / "sids.parquet")
    tries.save(tries.build(torch.tensor(SIDS)), folder / "trie.safetensors")
    (folder / "tokens.json").write_text(json.dumps({"levels": [3, 3], "tokens": names.token_names([3, 3])}))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A model and a catalog of six ads, which no test changes."""
    root = tmp_path_factory.mktemp("made")
    (root / "model").mkdir()
    (root / "catalog").mkdir()
    _save_model(root / "model")
    _save_catalog(root / "catalog")
    return root


@pytest.fixture
def tiny(made, tmp_path):
    """Folders, ten users of an audience in two files, and helpers, in the test's own folder."""
    audience = tmp_path / "audience"
    audience.mkdir()
    users = [f"u{number:02d}" for number in range(10)]
    save_prompts(audience / "prompts-00000.parquet", users[:7])
    save_prompts(audience / "prompts-00001.parquet", users[7:], first=7)
    (audience / "prompts.json").write_text(json.dumps({"max_tokens": 20, "soft_tokens": 0}))
    (tmp_path / "out").mkdir()
    return SimpleNamespace(
        model=made / "model",
        catalog=made / "catalog",
        audience=audience,
        out=tmp_path / "out",
        users=users,
        ads=[f"ad{row}" for row in range(6)],
        inputs=(made / "model", made / "catalog", audience),
        sids=SIDS,
        words_of=words_of,
        save_prompts=save_prompts,
        config=lambda **changes: DecodingConfig(**SETTINGS | changes),
    )
