"""The verbs: lists for test users and audiences, and nothing that must not be in them."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.catalog import trie as tries
from leadre.decoding.beam_search import beam_search, sid_tokens
from leadre.decoding.config import DecodingConfig
from leadre.generation.generate import check_lists, generate, generate_audience
from leadre.lm.model import load


@pytest.fixture
def listed(tiny, compute):
    """Make lists of the audience; each call begins with an empty folder."""

    def make(**changes):
        shutil.rmtree(tiny.out)
        tiny.out.mkdir()
        generate_audience(tiny.config(**changes), *tiny.inputs, out=tiny.out, compute=compute)
        return tables.read(tables.LISTS, tiny.out / "lists")

    return make


def summary(tiny):
    return json.loads((tiny.out / "generation.json").read_text())


def test_every_user_gets_the_best_ads_of_the_search_in_the_order_of_the_users(tiny, listed):
    lists = listed()
    assert lists["user_id"].to_list() == [user for user in tiny.users for _ in range(3)]
    assert lists["rank"].to_list() == [1, 2, 3] * 10
    lm = load(tiny.model)
    for number in range(10):
        ids = torch.tensor([tiny.words_of(number)])
        found = beam_search(
            lm.model,
            ids,
            torch.ones_like(ids),
            trie=tries.build(torch.tensor(tiny.sids)),
            sid_tokens=sid_tokens((10, 13), (3, 3)),
            beam_width=6,
            normalizer="full",
        )
        own = lists[3 * number : 3 * number + 3]
        assert own["ad_id"].to_list() == [f"ad{row}" for row in found.rows[0, :3].tolist()]
        assert own["score"].to_list() == pytest.approx(found.scores[0, :3].tolist(), abs=1e-5)


def test_test_users_get_their_lists_from_the_pairs_whose_responses_are_not_read(tiny, compute):
    pairs = tiny.audience.with_name("pairs")
    pairs.mkdir()
    (pairs / "prompts.json").write_text((tiny.audience / "prompts.json").read_text())
    tiny.save_prompts(pairs / "main.test.parquet", tiny.users, table=tables.PAIRS)
    generate(tiny.config(), tiny.model, tiny.catalog, pairs, out=tiny.out, compute=compute)
    found = tables.read(tables.LISTS, tiny.out / "lists")
    answered = pl.read_parquet(pairs / "main.test.parquet").with_columns(ad_id=pl.lit("no ad of the catalog"))
    answered.write_parquet(pairs / "main.test.parquet")
    generate(tiny.config(), tiny.model, tiny.catalog, pairs, out=tiny.out, compute=compute)
    assert tables.read(tables.LISTS, tiny.out / "lists").equals(found)
    generate_audience(tiny.config(), *tiny.inputs, out=tiny.out, compute=compute)
    assert tables.read(tables.LISTS, tiny.out / "lists").equals(found)


@pytest.mark.parametrize("changes", [{"shard_users": size} for size in (1, 2, 5, 100)] + [{"tokens_per_batch": 1000}])
def test_neither_shards_nor_batches_change_the_lists(tiny, listed, changes):
    expected = listed()
    found = listed(**changes)
    assert found.drop("score").equals(expected.drop("score"))
    assert found["score"].to_list() == pytest.approx(expected["score"].to_list(), abs=1e-5)


def test_parts_hold_their_shard_of_users_in_order(tiny, listed):
    listed(shard_users=4)
    parts = sorted((tiny.out / "lists").iterdir())
    assert [part.name for part in parts] == ["part-0000000.parquet", "part-0000001.parquet", "part-0000002.parquet"]
    users = [tables.read(tables.LISTS, part)["user_id"].unique(maintain_order=True).to_list() for part in parts]
    assert users == [tiny.users[:4], tiny.users[4:8], tiny.users[8:]]


def test_the_summary_counts_what_is_in_the_lists_and_tells_the_pace(tiny, listed):
    listed()
    told = summary(tiny)
    assert told.pop("seconds") > 0
    assert told.pop("cpu_seconds") > 0
    assert told.pop("users_per_second") > 0
    assert told.pop("settings") == dataclasses.asdict(tiny.config())
    assert told == {
        "users": 10,
        "listed_ads": 30,
        "invalid_ads": 0,
        "duplicate_ads": 0,
        "users_without_list": 0,
        "ads_not_running": 0,
        "invalid_rate": 0.0,
        "duplicate_rate": 0.0,
        "parts": 4,
        "users_of_this_run": 10,
    }


def test_wrong_lists_are_counted():
    rows = [("u", 1, "a"), ("u", 2, "a"), ("v", 1, "gone"), ("v", 2, "b")]
    lists = pl.DataFrame([(*row, 0.0) for row in rows], schema=tables.LISTS.schema, orient="row")
    found = check_lists(lists, pl.Series(["u", "v", "w"]), pl.Series(["a", "b"]))
    assert found == {"users": 3, "listed_ads": 4, "invalid_ads": 1, "duplicate_ads": 1, "users_without_list": 1}


def test_a_catalog_smaller_than_the_list_is_listed_whole(tiny, listed):
    for _, own in listed(beam_width=20, num_ads=20).group_by("user_id"):
        assert sorted(own["ad_id"]) == tiny.ads


def test_a_width_for_each_level_is_taken_and_too_few_are_refused(tiny, listed):
    first_code = dict(zip(tiny.ads, [sid[0] for sid in tiny.sids], strict=True))
    for _, own in listed(beam_width=(1, 6)).group_by("user_id"):  # one beam leaves the root
        assert own["ad_id"].replace_strict(first_code).n_unique() == 1
    with pytest.raises(
        ValueError, match=r"beam_width is \[2, 3, 4\], for 3 levels, but S-IDs of this catalog have 2: give one number"
    ):
        listed(beam_width=(2, 3, 4))


def test_several_ads_a_beam_give_lists_without_duplicates(tiny, listed):
    lists = listed(next_n=2, num_ads=5, beam_width=20)
    assert lists.group_by("user_id").len()["len"].to_list() == [5] * 10
    assert summary(tiny)["duplicate_ads"] == 0


def test_an_audience_without_users_has_an_empty_table_of_lists(tiny, listed):
    tiny.save_prompts(tiny.audience / "prompts-00000.parquet", [])
    (tiny.audience / "prompts-00001.parquet").unlink()
    assert listed().is_empty()
    assert (summary(tiny)["users"], summary(tiny)["users_per_second"]) == (0, None)


def test_a_progress_bar_is_for_terminals_alone_and_the_pace_for_the_log(tiny, compute, capsys, caplog):
    shown = dataclasses.replace(compute, progress=True)
    with caplog.at_level("INFO"):
        generate_audience(tiny.config(), *tiny.inputs, out=tiny.out, compute=shown)
    assert "Generating" not in capsys.readouterr().err
    assert "users/s; 0 users left" in caplog.text


def test_on_a_terminal_there_is_a_progress_bar(tiny, compute, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        shown = dataclasses.replace(compute, progress=True)
        generate_audience(tiny.config(), *tiny.inputs, out=tiny.out, compute=shown)
    assert "Generating" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


@pytest.mark.parametrize("weights", ["w8a8", "as_trained"])
def test_nobody_needs_no_model(tiny, listed, monkeypatch, weights):
    monkeypatch.setattr("leadre.generation.generate.Worker", None)
    tiny.save_prompts(tiny.audience / "prompts-00000.parquet", [])
    (tiny.audience / "prompts-00001.parquet").unlink()
    assert listed(weights=weights).is_empty()


def test_a_user_twice_is_refused_across_files(tiny, listed):
    tiny.save_prompts(tiny.audience / "prompts-00001.parquet", ["u99", "u03", "u03"])
    with pytest.raises(ValueError, match="has the user 'u03' 3 times: a user gets one list; keep one prompt a user"):
        listed()


def test_a_folder_without_prompts_is_refused(tiny, compute):
    with pytest.raises(ValueError, match=r"which has no prompts-\*\.parquet: compose an audience first"):
        generate_audience(tiny.config(), tiny.model, tiny.catalog, tiny.model, out=tiny.out, compute=compute)


def test_a_table_without_the_columns_of_prompts_is_refused(tiny, listed):
    pl.DataFrame({"user_id": [1]}).write_parquet(tiny.audience / "prompts-00001.parquet")
    with pytest.raises(tables.TableError, match=r"prompts-00001\.parquet is no prompts table: .*'user_id' is Int64"):
        listed()


def test_a_trie_of_another_catalog_is_refused(tiny, compute, tmp_path):
    catalog = shutil.copytree(tiny.catalog, tmp_path / "other")
    tries.save(tries.build(torch.tensor(tiny.sids[:4])), catalog / "trie.safetensors")
    with pytest.raises(ValueError, match=r"trie of 4 ads, but sids\.parquet has 6: index it anew"):
        generate_audience(tiny.config(), tiny.model, catalog, tiny.audience, out=tiny.out, compute=compute)


def test_prompts_with_more_learnable_tokens_than_the_model_are_refused(tiny, listed):
    (tiny.audience / "prompts.json").write_text(json.dumps({"max_tokens": 20, "soft_tokens": 2}))
    with pytest.raises(ValueError, match=r"has 0 learnable tokens, but prompts\.soft_tokens is 2: compose the prompts"):
        listed()


def test_more_ads_than_beams_are_refused_by_name(tiny):
    with pytest.raises(ValidationError, match=r"num_ads is 5, but beam_width is 4 and next_n 1: .*decoding\.num_ads"):
        tiny.config(num_ads=5, beam_width=4)
    assert tiny.config(num_ads=8, beam_width=4, next_n=2).num_ads == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"beam_width": 0},
        {"beam_width": 2.0},
        {"beam_width": ()},
        {"num_ads": 0},
        {"normalizer": "none"},
        {"engine": "fast"},
        {"weights": "w4"},
        {"shard_users": 0},
        {"next_n": 0},
        {"filters": ""},
    ],
)
def test_values_out_of_range_are_refused(tiny, changes):
    with pytest.raises(ValidationError):
        tiny.config(**changes)


@pytest.mark.parametrize("path", sorted(Path("conf/decoding").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid(path):
    with initialize_config_dir(str(path.parents[1].absolute()), version_base="1.3"):
        read = OmegaConf.to_container(compose("run", overrides=[f"decoding={path.stem}"]).decoding)
    found = TypeAdapter(DecodingConfig).validate_json(json.dumps(read))
    assert (found.engine == "graph") == (path.stem in ("gpu", "fp8", "w8a8"))
    assert found.weights == (path.stem if path.stem in ("fp8", "w8a8") else "as_trained")
