"""The verb generate: lists for the test users, and nothing that must not be in them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, PreTrainedTokenizerFast

from leadre import tables
from leadre.catalog import sids as names
from leadre.catalog import trie as tries
from leadre.decoding.beam_search import beam_search, sid_tokens
from leadre.decoding.config import DecodingConfig
from leadre.decoding.generate import batches, check_lists, generate, read_prompts
from leadre.lm.model import AdLM, load, save

SIDS = [[0, 0], [0, 2], [1, 1], [2, 0], [2, 1], [2, 2]]
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [2], [9, 9, 1, 1]]
TARGETS = [0, 5, 3, 2]


def config(**changes):
    return DecodingConfig(**{"beam_width": 4, "num_ads": 3, "normalizer": "full", "tokens_per_batch": 8} | changes)


def save_tokens(path, prompts=PROMPTS, targets=TARGETS):
    """The prompts as the encoder writes them, with the answer behind each."""
    targets = targets[: len(prompts)]
    answers = [[10 + SIDS[row][0], 13 + SIDS[row][1]] for row in targets]
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    kinds = [[0] * (len(row) - 2) + [2, 2] for row in rows]
    arrays = {
        "ids": np.concatenate(rows).astype(np.int32),
        "kinds": np.concatenate(kinds).astype(np.uint8),
        "offsets": np.cumsum([0, *map(len, rows)]).astype(np.int64),
        "targets": np.array(targets, dtype=np.int32),
    }
    save_file(arrays, path)


def save_users(path, users):
    rows = [{"user_id": user, "ad_id": "ad0", "head": [], "lead": [], "behaviors": [], "tail": []} for user in users]
    tables.write(tables.PAIRS, pl.DataFrame(rows, schema=tables.PAIRS.schema), path)


@pytest.fixture
def folders(tmp_path):
    model, catalog, pairs, tokens = (tmp_path / name for name in ("model", "catalog", "pairs", "tokens"))
    for folder in (model, catalog, pairs, tokens, tmp_path / "out"):
        folder.mkdir()
    torch.manual_seed(0)
    shape = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5}
    network = HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config(**shape, **heads, eos_token_id=None))
    words = Tokenizer(models.WordLevel({str(word): word for word in range(10)}, unk_token="0"))
    save(AdLM(network, PreTrainedTokenizerFast(tokenizer_object=words), (10, 13), ()), model)
    listed = {"ad_id": [f"ad{row}" for row in range(6)], "sid": SIDS, "name": [names.name(sid) for sid in SIDS]}
    tables.write(tables.SIDS, pl.DataFrame(listed, schema=tables.SIDS.schema), catalog / "sids.parquet")
    tries.save(tries.build(torch.tensor(SIDS)), catalog / "trie.safetensors")
    (catalog / "tokens.json").write_text(json.dumps({"levels": [3, 3], "tokens": names.token_names([3, 3])}))
    save_users(pairs / "main.test.parquet", ["u3", "u1", "u2", "u0"])
    save_tokens(tokens / "main.test.safetensors")
    return model, catalog, pairs, tokens


def test_every_user_gets_the_best_ads_of_the_search(folders, tmp_path, compute):
    generate(config(), *folders, out=tmp_path / "out", compute=compute)
    lists = tables.read(tables.LISTS, tmp_path / "out" / "lists.parquet")
    assert lists["user_id"].to_list() == [user for user in ("u3", "u1", "u2", "u0") for _ in range(3)]
    assert lists["rank"].to_list() == [1, 2, 3] * 4
    lm = load(folders[0])
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        found = beam_search(
            lm.model,
            ids,
            torch.ones_like(ids),
            trie=tries.build(torch.tensor(SIDS)),
            sid_tokens=sid_tokens((10, 13), (3, 3)),
            beam_width=4,
            normalizer="full",
        )
        own = lists[3 * number : 3 * number + 3]
        assert own["ad_id"].to_list() == [f"ad{row}" for row in found.rows[0, :3].tolist()]
        assert own["score"].to_list() == pytest.approx(found.scores[0, :3].tolist(), abs=1e-5)


def test_the_summary_counts_what_is_in_the_lists(folders, tmp_path, compute):
    generate(config(), *folders, out=tmp_path / "out", compute=compute)
    summary = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert summary == {"users": 4, "invalid_ads": 0, "duplicate_ads": 0, "users_without_list": 0}


def test_the_answer_behind_a_prompt_does_not_change_its_list(folders, tmp_path, compute):
    generate(config(), *folders, out=tmp_path / "out", compute=compute)
    before = (tmp_path / "out" / "lists.parquet").read_bytes()
    save_tokens(folders[3] / "main.test.safetensors", targets=[5, 0, 1, 4])
    generate(config(), *folders, out=tmp_path / "out", compute=compute)
    assert (tmp_path / "out" / "lists.parquet").read_bytes() == before


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_the_batches_do_not_change_the_lists(folders, tmp_path, compute, budget):
    generate(config(), *folders, out=tmp_path / "out", compute=compute)
    expected = tables.read(tables.LISTS, tmp_path / "out" / "lists.parquet")
    generate(config(tokens_per_batch=budget), *folders, out=tmp_path / "out", compute=compute)
    found = tables.read(tables.LISTS, tmp_path / "out" / "lists.parquet")
    assert found.drop("score").equals(expected.drop("score"))


def test_a_catalog_smaller_than_the_list_is_listed_whole(folders, tmp_path, compute):
    generate(config(beam_width=20, num_ads=20), *folders, out=tmp_path / "out", compute=compute)
    lists = tables.read(tables.LISTS, tmp_path / "out" / "lists.parquet")
    for _, own in lists.group_by("user_id"):
        assert sorted(own["ad_id"]) == [f"ad{row}" for row in range(6)]


def test_a_progress_bar_is_for_terminals_alone(folders, tmp_path, compute, capsys):
    shown = type(compute)(**{**vars(compute), "progress": True})
    generate(config(), *folders, out=tmp_path / "out", compute=shown)
    assert "Generating" not in capsys.readouterr().err


def test_responses_never_reach_a_prompt(tmp_path):
    save_tokens(tmp_path / "x.safetensors")
    found = read_prompts(tmp_path / "x.safetensors")
    cut = [found.ids[low:high].tolist() for low, high in zip(found.offsets, found.offsets[1:], strict=False)]
    assert cut == PROMPTS


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_batches_hold_every_prompt_once_and_keep_the_budget(lengths, budget):
    plan = list(batches(np.array(lengths), budget))
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


def test_wrong_lists_are_counted():
    rows = [("u", 1, "a"), ("u", 2, "a"), ("v", 1, "gone"), ("v", 2, "b")]
    lists = pl.DataFrame([(*row, 0.0) for row in rows], schema=tables.LISTS.schema, orient="row")
    summary = check_lists(lists, pl.Series(["u", "v", "w"]), pl.Series(["a", "b"]))
    assert summary == {"users": 3, "invalid_ads": 1, "duplicate_ads": 1, "users_without_list": 1}


def test_tokens_of_other_pairs_are_refused(folders, tmp_path, compute):
    save_tokens(folders[3] / "main.test.safetensors", PROMPTS[:3])
    with pytest.raises(ValueError, match="tokens holds 3 prompts, but pairs holds 4 users"):
        generate(config(), *folders, out=tmp_path / "out", compute=compute)


def test_a_user_twice_is_refused(folders, tmp_path, compute):
    save_users(folders[2] / "main.test.parquet", ["u", "v", "u", "w"])
    with pytest.raises(ValueError, match="a user twice"):
        generate(config(), *folders, out=tmp_path / "out", compute=compute)


def test_a_trie_of_another_catalog_is_refused(folders, tmp_path, compute):
    tries.save(tries.build(torch.tensor(SIDS[:4])), folders[1] / "trie.safetensors")
    with pytest.raises(ValueError, match=r"trie of 4 ads, but sids\.parquet has 6"):
        generate(config(), *folders, out=tmp_path / "out", compute=compute)


def test_more_ads_than_beams_are_refused_by_name():
    with pytest.raises(ValidationError, match=r"num_ads is 5, but beam_width is 4: .*decoding\.beam_width must be"):
        config(num_ads=5)


@pytest.mark.parametrize("changes", [{"beam_width": 0}, {"num_ads": 0}, {"normalizer": "none"}, {"beam_width": 2.0}])
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(ValidationError):
        config(**changes)


@pytest.mark.parametrize("variant", ["default", "level", "trie"])
def test_the_shipped_configurations_are_valid(variant):
    read = {name: yaml.safe_load(Path(f"conf/decoding/{name}.yaml").read_text()) for name in ("default", variant)}
    read[variant].pop("defaults", None)
    found = TypeAdapter(DecodingConfig).validate_json(json.dumps(read["default"] | read[variant]))
    assert found.normalizer == ("full" if variant == "default" else variant)
