"""The whole stage on a toy world: beams of a tiny model, a ranker by hand, no leak, the same bytes."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, PreTrainedTokenizerFast

from leadre import tables
from leadre.alignment import prefer as stage
from leadre.alignment.config import PreferenceConfig
from leadre.alignment.prefer import judged, last_prompts, prefer
from leadre.catalog import trie as tries
from leadre.config import CONF
from leadre.data.config import DataConfig
from leadre.data.gather import gather
from leadre.decoding.beam_search import beam_search, sid_tokens
from leadre.lm.model import AdLM, load, save
from leadre.lm.rows import read_rows
from leadre.ltr import known, ranker
from leadre.ltr.config import LtrConfig
from leadre.ltr.learn_to_rank import learn_to_rank
from leadre.ltr.ranker import Estimates

OFFSETS = (20, 24, 28)
CONFIG = PreferenceConfig(
    sources=("log", "beam"),
    beam_width=5,
    worth="ecpm",
    min_pctr_quantile=0.5,
    min_log_gap=0.1,
    train_targets=False,
    max_ads_per_user=12,
    rejected_per_chosen=3,
    max_pairs_per_user=8,
    max_pairs_per_ad=20,
    max_pairs=100,
    control=None,
    seed=0,
)
ADS = [f"ad{i:02}" for i in range(16)]
USERS = [f"u{n:02}" for n in range(20)]
CLICKS = ("train", "train", "valid", "test")


def frame(table, rows):
    return pl.DataFrame(rows, schema=table.schema, orient="row")


def lm(offsets=OFFSETS, vocab_size=32):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = HunYuanDenseV1ForCausalLM(
        HunYuanDenseV1Config(
            vocab_size=vocab_size, head_dim=8, tie_word_embeddings=True, initializer_range=0.3, pad_token_id=0, **shape
        )
    )
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return AdLM(model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), offsets, ())


def write_tokens(samples, path):
    kinds = [[0] * (len(sample) - 3) + [2] * 3 for sample in samples]
    arrays = {
        "ids": np.concatenate(samples).astype(np.int32),
        "kinds": np.concatenate(kinds).astype(np.uint8),
        "offsets": np.cumsum([0, *map(len, samples)]).astype(np.int64),
        "targets": np.zeros(len(samples), dtype=np.int32),
    }
    save_file(arrays, path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """20 users who click at 100, 200 (train), 300 (valid) and 400 (test); some ads are shown at every time."""
    root, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(1)
    split, shown, samples = [], [], []
    for user in USERS:
        picks = [ADS[i] for i in rng.permutation(16)]
        split += [(user, role, ad, 100 * (i + 1)) for i, (role, ad) in enumerate(zip(CLICKS, picks, strict=False))]
        shown += [(user, ad, 100 * (i + 1), float(rng.lognormal()), 0.1, True) for i, ad in enumerate(picks[:4])]
        shown += [(user, ad, int(rng.integers(1, 500)), float(rng.lognormal()), 0.2, False) for ad in picks[4:]]
        samples += [[*rng.integers(1, 20, rng.integers(2, 9)), 20, 24, 28] for _ in range(2)]
    spans = {"start_time": [0] * 14 + [201, 0], "end_time": [None] * 15 + [200]}  # ad14 is too young, ad15 too old
    empty = dict.fromkeys(["name", "product_type", "first_category", "second_category", "spu"], None)
    ads = pl.DataFrame({"ad_id": ADS, **empty, "attributes": [[]] * 16, **spans, "description": ADS})
    sids = [(ad, [i // 4, i % 4, 0], "") for i, ad in enumerate(ADS)]
    targets = [(user, ad) for user, role, ad, _ in split if role == "train"]
    pairs = [(user, ad, [], [], [], [], []) for user, ad in targets]
    roles = [(user, "label" if n % 4 == 0 else "train") for n, user in enumerate(USERS)]
    folders = {name: root / name for name in ("model", "world", "catalog", "pairs", "tokens", "ltr")}
    for folder in folders.values():
        folder.mkdir()
    save(lm(), folders["model"])
    tables.write(tables.ADS, ads.cast(tables.ADS.schema), folders["world"] / "ads.parquet")
    for table, rows, path in (
        (tables.SPLIT, split, folders["world"] / "split.parquet"),
        (tables.IMPRESSIONS, shown, folders["world"] / "impressions.parquet"),
        (tables.SIDS, sids, folders["catalog"] / "sids.parquet"),
        (tables.PAIRS, pairs, folders["pairs"] / "main.train.parquet"),
        (tables.LTR_USERS, roles, folders["ltr"] / "users.parquet"),
    ):
        tables.write(table, frame(table, rows), path)
    tries.save(tries.build(torch.tensor([sid for _, sid, _ in sids])), folders["catalog"] / "trie.safetensors")
    (folders["catalog"] / "tokens.json").write_text(json.dumps({"levels": [4, 4, 1]}))
    write_tokens(samples, folders["tokens"] / "main.train.safetensors")
    return folders


def said(user, time, ad):
    """A ranker's click probability and ECPM, as numbers that any mistake of place would change."""
    draw = np.random.default_rng([int(user[1:]), time, int(ad[2:])])
    return draw.random(), draw.lognormal()


def estimate(targets, ads):
    told = np.array([[said(user, time, ad) for ad in ads] for user, time in targets.rows()], dtype=np.float32)
    return Estimates(click=told[..., 0], ecpm=told[..., 1], value=told.prod(axis=-1))


@pytest.fixture(autouse=True)
def _a_ranker_by_hand(request, monkeypatch):
    if "simulated" not in request.fixturenames:
        monkeypatch.setattr(stage, "_ranker", lambda ltr, world: estimate)


def preferred(inputs, out, compute, **changes):
    out.mkdir()
    prefer(replace(CONFIG, **changes), **inputs, out=out, compute=compute)
    pairs = tables.read(tables.PREFERENCES, out / "preferences.parquet")
    return pairs, json.loads((out / "preferences.json").read_text())


@pytest.fixture(scope="module")
def whole(inputs, compute, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_ranker", lambda ltr, world: estimate)
        return preferred(inputs, tmp_path_factory.mktemp("whole") / "out", compute)


def test_nothing_leaks(inputs, whole):
    pairs, account = whole
    assert pairs.height > 40
    split = tables.read(tables.SPLIT, inputs["world"] / "split.parquet")
    shown = tables.read(tables.IMPRESSIONS, inputs["world"] / "impressions.parquet")
    for role in ("chosen", "rejected"):
        names = {"left_on": ["user_id", f"{role}_ad"], "right_on": ["user_id", "ad_id"]}
        assert pairs.join(split, **names).is_empty()
        logged = pairs.filter(pl.col(f"{role}_source") != "beam").join(shown, **names)
        assert len(logged) > 20
        assert (logged["time"] < 300).all()  # each ad is shown to a user once
        assert not pairs.filter(pl.col(f"{role}_source") == "beam")[f"{role}_ad"].is_in(ADS[14:]).any()
    assert set(pairs["user_id"]) == {user for n, user in enumerate(USERS) if n % 4}
    assert account["steps"]["impressions"]["dropped"]["not_an_ltr_training_user"] > 0
    assert account["steps"]["beam_ads"]["dropped"]["not_running_then"] > 0


def test_each_ecpm_is_the_logs_or_the_rankers_and_the_counts_are_complete(inputs, whole):
    pairs, account = whole
    shown = tables.read(tables.IMPRESSIONS, inputs["world"] / "impressions.parquet")
    logged = {(user, ad): ecpm for user, ad, _, ecpm, *_ in shown.rows()}
    kinds = set()
    for user, chosen, rejected, *ecpms, one, other, _ in pairs.rows():
        is_beam = "beam" in (one, other)
        expected = [
            float(np.float32(said(user, 200, ad)[1])) if is_beam else logged[user, ad] for ad in (chosen, rejected)
        ]
        assert ecpms == expected
        kinds.add(is_beam)
    assert kinds == {False, True}
    steps = account["steps"]
    assert steps["beam_ads"]["in"] == 15 * CONFIG.beam_width
    assert steps["impressions"]["in"] == 20 * 16
    for step in steps.values():
        assert step["in"] == step["out"] + sum(step["dropped"].values())
    assert steps["ads"]["in"] == steps["impressions"]["out"] + steps["beam_ads"]["out"]
    assert steps["pairs"]["out"] == account["pairs"] == pairs.height == sum(account["sources"].values())


def test_the_floor_of_beams_is_the_rankers_for_what_users_clicked_last(inputs, whole):
    pairs, account = whole
    split = tables.read(tables.SPLIT, inputs["world"] / "split.parquet").filter(role="train", time=200)
    clicks = [said(user, 200, ad)[0] for user, _, ad, _ in split.rows() if int(user[1:]) % 4]
    assert account["floors"]["beam"] == pytest.approx(np.median(np.float32(clicks)), abs=1e-7)
    beams = [(user, ad) for role in ("chosen", "rejected") for user, ad in _of_beam(pairs, role)]
    assert min(said(user, 200, ad)[0] for user, ad in beams) >= account["floors"]["beam"] - 1e-7


def _of_beam(pairs, role):
    return pairs.filter(pl.col(f"{role}_source") == "beam").select("user_id", f"{role}_ad").rows()


def test_the_beams_are_those_of_each_last_prompt_alone(inputs, compute):
    model, catalog, file = load(inputs["model"]).model, inputs["catalog"], inputs["tokens"] / "main.train.safetensors"
    arrays = load_file(file)
    ask = {"width": 5, "num_ads": 16, "device": torch.device("cpu")}
    rows = np.arange(1, 40, 2)
    found = stage._beam(inputs["model"], catalog, read_rows(file, num_rows=40), **ask)(rows)
    search = partial(
        beam_search,
        model,
        trie=tries.load(catalog / "trie.safetensors"),
        sid_tokens=sid_tokens(OFFSETS, (4, 4, 1)),
        beam_width=5,
        normalizer="full",
    )
    for row, beam in zip(rows, found, strict=True):
        prompt = torch.from_numpy(arrays["ids"][arrays["offsets"][row] : arrays["offsets"][row + 1] - 3])[None].long()
        assert search(prompt, torch.ones_like(prompt)).rows[0].tolist() == beam.tolist()


def test_the_bytes_do_not_depend_on_the_order_of_rows_or_on_parts(inputs, whole, compute, tmp_path, monkeypatch):
    arrays = load_file(inputs["tokens"] / "main.train.safetensors")
    samples = np.split(arrays["ids"], arrays["offsets"][1:-1])
    order = [row for user in reversed(range(20)) for row in (2 * user, 2 * user + 1)]  # a user's own rows keep theirs
    folders = {**inputs, **{name: tmp_path / name for name in ("world", "ltr", "pairs", "tokens")}}
    for name in ("world", "ltr", "pairs", "tokens"):
        folders[name].mkdir()
        for path in inputs[name].glob("*.parquet"):
            rows = pl.read_parquet(path)
            rows[order if name == "pairs" else np.random.default_rng(0).permutation(rows.height)].write_parquet(
                folders[name] / path.name
            )
    write_tokens([samples[row] for row in order], folders["tokens"] / "main.train.safetensors")
    monkeypatch.setattr(stage, "CELLS", 16 * 3)  # three users at a time
    monkeypatch.setattr(stage, "TOKENS", 10)
    pairs, account = preferred(folders, tmp_path / "out", compute)
    assert pairs.equals(whole[0])
    assert account == whole[1]
    again, _ = preferred(inputs, tmp_path / "again", compute)
    files = [(tmp_path / name / "preferences.parquet").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]
    assert again.equals(pairs)
    assert not preferred(inputs, tmp_path / "seed", compute, seed=1, max_pairs=30)[0].equals(
        preferred(inputs, tmp_path / "zero", compute, seed=0, max_pairs=30)[0]
    )


def test_estimates_in_memory_do_not_grow_with_users(monkeypatch):
    monkeypatch.setattr(stage, "CELLS", 8)
    sizes = []

    def measured(targets, ads):
        sizes.append(len(targets) * len(ads))
        return estimate(targets, ads)

    asked = pl.DataFrame({"user_id": USERS, "row": range(20), "ad_id": [ADS[0]] * 20, "time": [7] * 20})
    log = pl.DataFrame({"user_id": ["u03", "u99"], "ad_id": "ad02", "estimate": None})
    found = judged(
        asked, log, pl.Series(ADS[:4]), beam=lambda rows: rows[:, None] % 4, width=1, estimate=measured, worth="ecpm"
    )
    assert len(sizes) == 10
    assert max(sizes) <= 8
    clicks = [np.float32(said(user, 7, ADS[0])[0]) for user in USERS]
    assert found.clicks.to_list() == pytest.approx(clicks)
    assert found.log["estimate"].to_list() == [pytest.approx(said("u03", 7, "ad02")[1], rel=1e-6), None]
    user, ad, place, time, click, ecpm = found.beams.row(5)
    assert (user, ad, place, time) == ("u05", "ad01", 0, 7)
    assert (click, ecpm) == pytest.approx(said("u05", 7, "ad01"), rel=1e-6)


def test_users_at_a_time_do_not_become_fewer_with_a_larger_catalog(monkeypatch):
    monkeypatch.setattr(stage, "CELLS", 300)
    sizes = []

    def measured(targets, ads):
        sizes.append((len(targets), len(ads)))
        return estimate(targets, ads)

    asked = pl.DataFrame({"user_id": USERS, "row": range(20), "ad_id": [ADS[0]] * 20, "time": [7] * 20})
    log = pl.DataFrame({"user_id": ["u03"], "ad_id": "ad02", "estimate": None})
    ads = pl.Series([f"ad{i}" for i in range(100_000)])
    judged(asked, log, ads, beam=lambda rows: 1000 * rows[:, None], width=1, estimate=measured, worth="ecpm")
    assert [users for users, _ in sizes] == [10, 10]
    assert max(users * ads for users, ads in sizes) <= 300


def test_a_beam_that_finds_fewer_ads_than_its_width_holds_no_ad_in_their_place():
    asked = pl.DataFrame({"user_id": ["u01"], "row": [0], "ad_id": ["ad00"], "time": [7]})
    log = pl.DataFrame(schema={"user_id": pl.String, "ad_id": pl.String, "estimate": pl.Float64})
    found = judged(
        asked, log, pl.Series(ADS), beam=lambda rows: np.array([[3, -1]]), width=2, estimate=estimate, worth="ecpm"
    )
    assert found.beams["ad_id"].to_list() == ["ad03"]


def test_without_a_beam_neither_model_nor_ranker_is_loaded(inputs, compute, tmp_path, monkeypatch):
    for name in ("load", "_ranker"):
        monkeypatch.setattr(stage, name, lambda *_: pytest.fail("loaded"))
    pairs, account = preferred(inputs, tmp_path / "out", compute, sources=("log",), train_targets=True)
    assert set(pairs["chosen_source"]) | set(pairs["rejected_source"]) == {"click", "shown"}
    assert account["steps"]["beam_ads"] == {"in": 0, "dropped": {}, "out": 0}


def test_the_beam_alone_makes_pairs_too(inputs, compute, tmp_path):
    pairs, account = preferred(inputs, tmp_path / "out", compute, sources=("beam",), beam_width=16)
    assert set(account["sources"]) == {"beam>beam"}
    assert account["steps"]["impressions"]["in"] == 0
    assert pairs.height > 10


def test_by_value_an_ad_is_worth_the_chance_of_a_click_times_its_ecpm(inputs, compute, tmp_path):
    pairs, account = preferred(inputs, tmp_path / "out", compute, worth="value")
    assert account["worth"] == "value"
    for user, chosen, rejected, *worths, _, _, _ in pairs.rows():
        assert worths == pytest.approx([math.prod(said(user, 200, ad)) for ad in (chosen, rejected)], rel=1e-6)


def test_a_control_is_told_in_the_account(inputs, whole, compute, tmp_path):
    pairs, account = preferred(inputs, tmp_path / "out", compute, control="flipped")
    assert account["control"] == "flipped"
    assert account["steps"] == whole[1]["steps"]
    assert (pairs["chosen_worth"] < pairs["rejected_worth"]).all()


def test_both_controls_hold_the_very_pairs_of_ads_and_no_train_target(inputs, whole, compute, tmp_path):
    split = tables.read(tables.SPLIT, inputs["world"] / "split.parquet")
    targets = set(split.select("user_id", "ad_id").rows())
    true = {(user, frozenset(ads)) for user, *ads in whole[0].select("user_id", "chosen_ad", "rejected_ad").rows()}
    assert len(true) == whole[0].height
    for control in ("flipped", "random"):
        pairs = preferred(inputs, tmp_path / control, compute, control=control)[0]
        rows = pairs.select("user_id", "chosen_ad", "rejected_ad").rows()
        assert {(user, frozenset(ads)) for user, *ads in rows} == true
        assert targets.isdisjoint((user, ad) for user, *ads in rows for ad in ads)
        assert not pairs.equals(whole[0])


def test_a_world_without_pairs_says_so(inputs, compute, tmp_path):
    with pytest.raises(ValueError, match=r"left no pair of 320 .* and 75 ads of beams \(.*too_close: .*loosen"):
        preferred(inputs, tmp_path / "out", compute, min_log_gap=99.0)


def test_inputs_that_do_not_belong_together_are_refused(inputs, compute, tmp_path):
    folders = {**inputs, "tokens": tmp_path / "tokens", "catalog": tmp_path / "catalog"}
    for name in ("tokens", "catalog"):
        folders[name].mkdir()
    write_tokens([[1, 20, 24, 28]], folders["tokens"] / "main.train.safetensors")
    with pytest.raises(ValueError, match=r"with 1 rows, but there are 40 pairs: .* encode the pairs again"):
        preferred(inputs | {"tokens": folders["tokens"]}, tmp_path / "a", compute)
    for path in inputs["catalog"].iterdir():
        (folders["catalog"] / path.name).write_bytes(path.read_bytes())
    tries.save(tries.build(torch.tensor([[0, 0, 0]])), folders["catalog"] / "trie.safetensors")
    with pytest.raises(ValueError, match=r"trie of 1 ads, but sids.parquet has 16: index it anew"):
        preferred(inputs | {"catalog": folders["catalog"]}, tmp_path / "b", compute)


def test_the_last_prompt_of_a_user_has_the_time_of_its_own_target():
    pairs = pl.DataFrame({"user_id": ["u", None, "v", "u", "w"], "ad_id": ["a", "b", "a", "c", "d"]})
    split = [("u", "train", "a", 9), ("u", "train", "c", 3), ("u", "valid", "c", 11), ("v", "train", "a", 1)]
    found = last_prompts(pairs, frame(tables.SPLIT, [*split, ("v", "train", "a", 5)]))
    assert found.rows() == [("u", 3, "c", 3), ("v", 2, "a", 5)]  # w is of another split


# a simulated world and the real ranker


def settings_of(schema, name, *overrides):
    """A part of the run's configuration, as the program reads it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose("run", list(overrides))[name], resolve=True)
    return TypeAdapter(schema).validate_json(json.dumps(plain))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The folders of a simulated world with a ranker that was trained on it; S-IDs and prompts are noise."""
    root, rng = tmp_path_factory.mktemp("simulated"), np.random.default_rng(0)
    folders = {name: root / name for name in ("model", "world", "catalog", "pairs", "tokens", "ltr")}
    for folder in folders.values():
        folder.mkdir()
    gather(settings_of(DataConfig, "data", "data/world=tiny"), out=folders["world"])
    ads = pl.read_parquet(folders["world"] / "ads.parquet")["ad_id"].to_list()
    codes = [[i // 16, i % 16, 0] for i in range(len(ads))]
    levels = [codes[-1][0] + 1, 16, 1]
    rows = [(ad, sid, "") for ad, sid in zip(ads, codes, strict=True)]
    tables.write(tables.SIDS, frame(tables.SIDS, rows), folders["catalog"] / "sids.parquet")
    tries.save(tries.build(torch.tensor(codes)), folders["catalog"] / "trie.safetensors")
    (folders["catalog"] / "tokens.json").write_text(json.dumps({"levels": levels}))
    offsets = (20, 20 + levels[0], 36 + levels[0])
    save(lm(offsets, vocab_size=40 + levels[0]), folders["model"])
    split = tables.read(tables.SPLIT, folders["world"] / "split.parquet").filter(role="train")
    pairs = [(user, ad, [], [], [], [], []) for user, ad in split.select("user_id", "ad_id").rows()]
    tables.write(tables.PAIRS, frame(tables.PAIRS, pairs), folders["pairs"] / "main.train.parquet")
    samples = [[*rng.integers(1, 20, 8), *offsets] for _ in pairs]
    write_tokens(samples, folders["tokens"] / "main.train.safetensors")
    ltr = OmegaConf.create({"seed": 0, "ltr": OmegaConf.load(CONF / "ltr/default.yaml")})
    ltr = TypeAdapter(LtrConfig).validate_json(json.dumps(OmegaConf.to_container(ltr, resolve=True)["ltr"]))
    learn_to_rank(ltr, folders["world"], folders["catalog"], out=folders["ltr"])
    return folders


def test_nothing_leaks_in_a_simulated_world_with_the_real_ranker(simulated, compute, tmp_path):
    """A scan of all pairs: held-out targets, times, users; and the estimates are those that anybody would ask for."""
    pairs, account = preferred(simulated, tmp_path / "out", compute, beam_width=10, max_pairs=500)
    split = tables.read(tables.SPLIT, simulated["world"] / "split.parquet")
    shown = tables.read(tables.IMPRESSIONS, simulated["world"] / "impressions.parquet")
    users = dict(tables.read(tables.LTR_USERS, simulated["ltr"] / "users.parquet").rows())
    assert {users[user] for user in pairs["user_id"]} == {"train"}
    assert account["steps"]["impressions"]["dropped"]["not_an_ltr_training_user"] > 100
    held_out = set(split.filter(pl.col("role") != "train").select("user_id", "ad_id").rows())
    ends = dict(split.filter(role="valid").select("user_id", "time").rows())
    last = dict(split.filter(role="train").group_by("user_id").agg(pl.col("time").max()).rows())
    logged = {
        (user, ad, ecpm) for user, ad, time, ecpm, *_ in shown.rows() if time < ends.get(user, last.get(user, -1) + 1)
    }
    asked = pl.DataFrame({"user_id": sorted(last), "time": [last[user] for user in sorted(last)]})
    ads = sorted(set(pairs["chosen_ad"]) | set(pairs["rejected_ad"]))
    ecpms = ranker.estimate(ranker.load(simulated["ltr"]), known.read(simulated["world"]), asked, ads).ecpm
    place = {user: row for row, user in enumerate(asked["user_id"])}
    kinds = set()
    for user, chosen, rejected, *worth, one, other, _ in pairs.rows():
        assert {(user, chosen), (user, rejected)}.isdisjoint(held_out)
        kinds.add(is_beam := "beam" in (one, other))
        for ad, ecpm in zip((chosen, rejected), worth, strict=True):
            expected = float(ecpms[place[user], ads.index(ad)])
            assert (ecpm == pytest.approx(expected, rel=1e-4)) if is_beam else ((user, ad, ecpm) in logged)
    assert kinds == {False, True}
