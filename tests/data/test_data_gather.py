import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from polars.testing import assert_frame_equal
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load_file

from leadre import tables
from leadre.adworld.simulate import simulate
from leadre.data.config import DataConfig, TablesData
from leadre.data.fingerprint import fingerprint
from leadre.data.gather import gather
from leadre.data.importers import synthetic
from leadre.data.split import histories

ROOT = Path(__file__).parents[2]
WRITTEN = {
    "ads": tables.ADS,
    "users": tables.USERS,
    "contents": tables.CONTENTS,
    "behaviors": tables.BEHAVIORS,
    "negatives": tables.NEGATIVES,
    "impressions": tables.IMPRESSIONS,
    "split": tables.SPLIT,
}

ADS = """\
ad_id,name,attributes,start_time,end_time
a1,Shoes,brand_X;color_red,,
a2,ca\u0301r\u202e <a_3>,,10,20
a2,Same id,,,
,No id,,,
a3,,,,
a4,Backwards,,20,10
 a5,Space before,,,
a6,Before 1970,,-1,
"""
BEHAVIORS = """\
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click", "time": 100}
{"user_id": "u1", "item_id": "a2", "domain": "ad", "action": "click", "time": 200}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click", "time": 300}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click", "time": 300}
{"user_id": null, "item_id": "a1", "domain": "ad", "action": "click", "time": 100}
{"user_id": "u1", "item_id": "", "domain": "ad", "action": "click", "time": 100}
{"user_id": "u1", "item_id": "a9", "domain": "ad", "action": "click", "time": 100}
{"user_id": "u1", "item_id": "c9", "domain": "content", "action": "read", "time": 100}
{"user_id": "u1", "item_id": "a1", "domain": "shop", "action": "click", "time": 100}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "\\u0000", "time": 100}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click", "time": -1}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click", "time": 1001}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click"}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click", "time": "soon"}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "click", "time": 100
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "cl\\ud800ick", "time": 50}
{"user_id": "no\\u0000body", "item_id": "a1", "domain": "ad", "action": "click", "time": 100}
{"user_id": "u\\ud8001", "item_id": "a1", "domain": "ad", "action": "click", "time": 50}
{"user_id": "u1", "item_id": "a1", "domain": "ad", "action": "cl\\u0007ick", "time": 50}
"""
IMPRESSIONS = """\
user_id,ad_id,time,ecpm,pctr,clicked
u1,a1,100,1.5,0.1,true
u1,a1,100,1.5,0.1,true
u1,a9,100,1,,
u9,a1,100,1,,
u1,a1,101,,,
u1,a1,102,-1,,
u1,a1,103,inf,,
u1,a1,104,nan,,
u1,a1,105,0,1.5,
u1,a1,106,0,nan,
u1,a1,1001,0,,
"""
BAD = {
    ("ads.csv", 4): "ad_id seen before",
    ("ads.csv", 5): "no ad_id",
    ("ads.csv", 6): "no feature to describe the ad by",
    ("ads.csv", 7): "life span ends before it starts",
    ("ads.csv", 8): "ad_id has hidden characters, outer spaces, no normal form C, or is too long",
    ("ads.csv", 9): "negative time",
    ("behaviors.jsonl", 4): "exact duplicate",
    ("behaviors.jsonl", 5): "no user_id",
    ("behaviors.jsonl", 6): "no item_id",
    ("behaviors.jsonl", 7): "unknown ad",
    ("behaviors.jsonl", 8): "unknown content",
    ("behaviors.jsonl", 9): "domain is neither ad nor content",
    ("behaviors.jsonl", 10): "no action",
    ("behaviors.jsonl", 11): "negative time",
    ("behaviors.jsonl", 12): "future time",
    ("behaviors.jsonl", 13): "no time",
    ("behaviors.jsonl", 14): "time is no whole number",
    ("behaviors.jsonl", 15): "broken JSON",
    ("behaviors.jsonl", 16): "a surrogate without its partner, which is half a character",
    ("behaviors.jsonl", 17): "user_id has hidden characters, outer spaces, no normal form C, or is too long",
    ("behaviors.jsonl", 18): "a surrogate without its partner, which is half a character",
    ("impressions.csv", 3): "exact duplicate",
    ("impressions.csv", 4): "unknown ad",
    ("impressions.csv", 5): "unknown user",
    ("impressions.csv", 6): "ecpm is missing, negative or not finite",
    ("impressions.csv", 7): "ecpm is missing, negative or not finite",
    ("impressions.csv", 8): "ecpm is missing, negative or not finite",
    ("impressions.csv", 9): "ecpm is missing, negative or not finite",
    ("impressions.csv", 10): "pctr is no probability",
    ("impressions.csv", 11): "pctr is no probability",
    ("impressions.csv", 12): "future time",
}


def own(root, **changed):
    given = {"language": "en", "end_time": "1970-01-01T00:16:40", "min_ads": 3, "max_bad_share": 1.0, **changed}
    return TablesData(kind="tables", root=str(root), **given)


@pytest.fixture
def bad_corpus(tmp_path):
    root = tmp_path / "given"
    root.mkdir()
    (root / "ads.csv").write_text(ADS)
    (root / "behaviors.jsonl").write_text(BEHAVIORS)
    (root / "impressions.csv").write_text(IMPRESSIONS)
    return root


def gathered(config, folder):
    folder.mkdir(exist_ok=True)
    gather(config, out=folder)
    frames = {name: tables.read(table, folder / f"{name}.parquet") for name, table in WRITTEN.items()}
    return frames, json.loads((folder / "world.json").read_text()), folder / "quarantine.jsonl"


def refused(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@cache
def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(compose("run", list(overrides)).data, resolve=True)
    return TypeAdapter(DataConfig).validate_json(json.dumps(plain))


def test_each_bad_row_is_refused_for_its_reason(bad_corpus, tmp_path):
    _, world, path = gathered(own(bad_corpus), tmp_path / "out")
    assert {(row["file"], row["line"]): row["reason"] for row in refused(path)} == BAD
    assert world["quarantined"] == dict(Counter(BAD.values()))


def test_rows_in_are_rows_out_and_refused_rows(bad_corpus, tmp_path):
    frames, world, path = gathered(own(bad_corpus), tmp_path / "out")
    bad = Counter(row["file"] for row in refused(path))
    for file, text in (("ads.csv", ADS), ("behaviors.jsonl", BEHAVIORS), ("impressions.csv", IMPRESSIONS)):
        total = len(text.splitlines()) - file.endswith(".csv")
        assert world["read"][file] == total == frames[file.split(".")[0]].height + bad[file]


def test_a_refused_row_is_kept_as_it_was(bad_corpus, tmp_path):
    rows = {(row["file"], row["line"]): row["row"] for row in refused(gathered(own(bad_corpus), tmp_path / "out")[2])}
    assert rows["behaviors.jsonl", 14]["time"] == "soon"
    assert rows["behaviors.jsonl", 15] == BEHAVIORS.splitlines()[14]
    assert rows["behaviors.jsonl", 7] == json.loads(BEHAVIORS.splitlines()[6])


def test_text_is_cleaned_and_described_and_ids_are_not_touched(bad_corpus, tmp_path):
    frames, _, _ = gathered(own(bad_corpus), tmp_path / "out")
    assert frames["ads"]["description"].to_list() == [
        "The name of the ad is Shoes; The attributes include: brand_X, color_red.",
        "The name of the ad is cár <a_3>.",
    ]
    assert frames["behaviors"].row(0) == ("u1", "a1", "ad", "click", 50)


def test_users_without_a_profile_get_a_row(bad_corpus, tmp_path):
    frames, world, _ = gathered(own(bad_corpus), tmp_path / "out")
    assert frames["users"].rows() == [("u1", *[None] * 6)]
    assert world["users_with_test"] == 1
    assert world["users_without_test"] == 0


def test_too_many_bad_rows_stop_the_run_and_leave_the_quarantine(bad_corpus, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"of the 19 rows of behaviors\.jsonl are bad, mostly") as told:
        gathered(own(bad_corpus, max_bad_share=0.5), out)
    message = str(told.value)
    assert "75.00% of the 8 rows of ads.csv" in message
    assert "ecpm is missing, negative or not finite (4), pctr is no probability (2)" in message
    assert "data.max_bad_share allows 50.00%" in message
    path = Path(re.search(r"listed in (\S+),", message)[1])
    assert len(refused(path)) == len(BAD)
    assert not (out / "world.json").exists()


def test_the_limit_itself_is_allowed(bad_corpus, tmp_path):
    gathered(own(bad_corpus, max_bad_share=10 / 11), tmp_path / "out")


def test_a_damaged_table_stops_the_run(tmp_path):
    (tmp_path / "ads.csv").write_text(ADS)
    (tmp_path / "behaviors.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"100.00% of the 1 rows of behaviors.parquet are bad.*cannot be read"):
        gathered(own(tmp_path, max_bad_share=0.99), tmp_path / "out")


def test_a_world_without_ads_is_told(tmp_path):
    (tmp_path / "ads.csv").write_text("ad_id\n")
    with pytest.raises(ValueError, match=r"the world has no ads: check data\.root, and the refused rows in"):
        gathered(own(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("file", [None, "behaviors.jsonl", "users.csv"])
def test_ads_alone_are_a_world_that_can_be_indexed(tmp_path, caplog, file):
    (tmp_path / "ads.csv").write_text("ad_id,name\na,Shoes\nb,Boots\n")
    if file is not None:
        (tmp_path / file).write_text("user_id,age\nu,22\n" if file == "users.csv" else "")
    frames, world, path = gathered(own(tmp_path), tmp_path / "out")
    assert "tables has no behaviors: it can be indexed, not trained on" in caplog.text
    assert frames["ads"]["ad_id"].to_list() == ["a", "b"]
    assert all(frames[name].is_empty() for name in ("behaviors", "impressions", "split", "contents"))
    assert (world["users_with_test"], world["users_without_test"]) == (0, 0)
    assert path.read_text() == ""
    assert fingerprint(own(tmp_path))


def test_the_faults_of_all_tables_are_told_at_once(tmp_path):
    (tmp_path / "ads.csv").write_text("id,name\n")
    (tmp_path / "behaviors.csv").write_text("user_id,time\n")
    with pytest.raises(ValueError, match="ads table: column 'ad_id' is missing") as told:
        gathered(own(tmp_path), tmp_path / "out")
    assert "behaviors table: column 'item_id' is missing; column 'domain' is missing" in str(told.value)


def test_a_missing_folder_is_told_with_the_override_to_type(tmp_path):
    with pytest.raises(ValueError, match=r"data.root is '.*nowhere', but there is no such folder.*data.root=PATH"):
        gathered(own(tmp_path / "nowhere"), tmp_path / "out")


def test_missing_and_doubled_tables_are_told_together(tmp_path):
    for name in ("users.csv", "users.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"no file for the table ads; users.parquet and users.csv are the same table"):
        gathered(own(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("end_time", "refused_rows"), [("1970-01-01T00:05:00", 0), ("1970-01-01T08:04:59+08:00", 1), ("1970-01-02", 0)]
)
def test_end_time_is_utc_unless_it_says_otherwise(tmp_path, end_time, refused_rows):
    (tmp_path / "ads.csv").write_text("ad_id,name\na,Shoes\n")
    clicks = "".join(f"u,a,ad,click,{time}\n" for time in (1, 2, 300))
    (tmp_path / "behaviors.csv").write_text(f"user_id,item_id,domain,action,time\n{clicks}")
    _, _, path = gathered(own(tmp_path, end_time=end_time, min_ads=2), tmp_path / "out")
    assert [row["reason"] for row in refused(path)] == ["future time"] * refused_rows


def test_without_an_end_time_the_far_future_is_refused(tmp_path):
    (tmp_path / "ads.csv").write_text("ad_id,name\na,Shoes\n")
    in_milliseconds = 1_700_000_000_000
    (tmp_path / "behaviors.csv").write_text(
        f"user_id,item_id,domain,action,time\nu,a,ad,click,1\nu,a,ad,click,1700000000\nu,a,ad,click,{in_milliseconds}\n"
    )
    _, world, _ = gathered(own(tmp_path, end_time=None, min_ads=2), tmp_path / "out")
    assert world["quarantined"] == {"future time": 1}


def test_a_wrong_end_time_is_told(bad_corpus, tmp_path):
    with pytest.raises(ValueError, match=r"data\.end_time is 'tomorrow', but must be an ISO time"):
        gathered(own(bad_corpus, end_time="tomorrow"), tmp_path / "out")


def test_the_example_of_the_docs_is_the_example_in_the_repository(tmp_path, monkeypatch):
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    for name in ("ads", "users", "contents", "behaviors", "negatives", "impressions"):
        assert_frame_equal(
            pl.read_parquet(f"{name}.parquet"), pl.read_parquet(ROOT / f"examples/ten_rows/{name}.parquet")
        )


def test_the_example_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    frames, world, path = gathered(composed("data=tables"), tmp_path / "out")
    assert path.read_text() == ""
    assert world["counts"]["ad_behaviors"] + world["counts"]["content_behaviors"] == frames["behaviors"].height == 10
    assert (world["users_with_test"], world["users_without_test"]) == (2, 1)
    told = "The name of the ad is ID.3 test drive; The product type is Automobile Products; The first-level category is"
    assert frames["ads"]["description"][0].startswith(told)
    assert frames["ads"]["description"][0] in (ROOT / "docs/data.md").read_text()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The folder of a simulated world, and what `gathered` gives of it."""
    out = tmp_path_factory.mktemp("simulated") / "out"
    return out, *gathered(composed("data=synthetic", "data/world=tiny"), out)


def test_a_simulated_world_is_gathered_with_its_oracle(simulated):
    out, frames, world, path = simulated
    assert path.read_text() == ""
    assert (world["name"], world["language"]) == ("synthetic", "en")
    assert world["read"] == {
        f"simulated {name}": frames[name].height for name in WRITTEN if name not in {"split", "negatives"}
    }
    oracle = tables.read(tables.LISTS, out / "oracle.parquet")
    tested = frames["split"].filter(role="test")["user_id"]
    assert set(oracle["user_id"]) == set(tested)
    assert frames["behaviors"].equals(frames["behaviors"].sort("user_id", "time", maintain_order=True))


def test_the_state_behind_a_simulated_world_is_kept_as_it_was(simulated):
    out, _, _, _ = simulated
    config = composed("data=synthetic", "data/world=tiny")
    kept, made = load_file(out / "hidden.safetensors"), simulate(config.world, config.seed).hidden
    assert kept.keys() == made.keys()
    assert all(kept[name].dtype == made[name].dtype and (kept[name] == made[name]).all() for name in made)


def test_impressions_without_a_click_are_the_negatives_of_a_simulated_world(simulated):
    _, frames, world, _ = simulated
    missed = frames["impressions"].filter(clicked=False).rename({"ad_id": "item_id"})
    negatives = frames["negatives"]
    assert negatives.height == missed.height == world["counts"]["ad_negatives"] > 0
    assert negatives.join(missed, on=["user_id", "item_id", "time"], how="anti").is_empty()
    assert set(negatives["action"]) == {"no_click"}


def test_a_bad_row_of_a_simulation_stops_the_run(tmp_path, monkeypatch):
    def with_a_doubled_ad(world, seed):
        made = simulate(world, seed)
        return made._replace(ads=pl.concat([made.ads, made.ads.head(1)]))

    monkeypatch.setattr(synthetic, "simulate", with_a_doubled_ad)
    with pytest.raises(ValueError, match="rows of simulated ads are bad, mostly: ad_id seen before"):
        gathered(composed("data=synthetic", "data/world=tiny"), tmp_path / "out")


@pytest.mark.parametrize("min_ads", [2, 3])
def test_the_oracle_ranks_for_exactly_the_tested_users(tmp_path, min_ads):
    config = composed("data=synthetic", "data/world=tiny", f"data.min_ads={min_ads}", "data.world.users.num_users=60")
    frames, _, _ = gathered(config, tmp_path / "out")
    oracle = tables.read(tables.LISTS, tmp_path / "out" / "oracle.parquet")
    assert set(oracle["user_id"]) == set(frames["split"].filter(role="test")["user_id"])


def test_a_world_in_which_nobody_can_be_tested_is_told_and_can_be_indexed(bad_corpus, tmp_path, caplog):
    frames, world, _ = gathered(own(bad_corpus, min_ads=9), tmp_path / "out")
    assert "no user has data.min_ads=9 ad behaviors, so nobody can be tested: the world can be indexed" in caplog.text
    assert frames["ads"].height == 2
    assert set(frames["split"]["role"]) == {"train"}
    assert (world["users_with_test"], world["users_without_test"]) == (0, 1)


def test_no_history_of_a_simulated_world_reaches_its_target(simulated):
    _, frames, _, _ = simulated
    split, behaviors = frames["split"], frames["behaviors"]
    history = histories(behaviors, split, 90)
    assert (history["time"] < split["time"][history["target"]]).all()
    owner = split[history["target"]].select("user_id").hstack(history.drop("target"))
    assert owner.join(behaviors, on=behaviors.columns, how="anti").is_empty()
    valid = split.filter(role="valid").select("user_id", valid_time="time")
    train = split.filter(role="train").join(valid, on="user_id")
    assert (train["time"] < train["valid_time"]).all()


@pytest.mark.parametrize("source", ["synthetic", "completejourney", "amazon_beauty", "tables"])
def test_every_source_has_settings_that_are_valid(source):
    assert composed(f"data={source}").kind == source


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="ends"):
        own("x", ends="now")


def test_the_fingerprint_is_of_names_and_contents_not_of_the_place(bad_corpus, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in bad_corpus.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    (elsewhere / "notes.txt").write_text("not read")
    assert fingerprint(own(bad_corpus)) == fingerprint(own(elsewhere))
    (elsewhere / "ads.csv").write_text(ADS + "a7,New,,,\n")
    assert fingerprint(own(bad_corpus)) != fingerprint(own(elsewhere))
    (bad_corpus / "impressions.csv").rename(bad_corpus / "impressions.jsonl")
    (elsewhere / "ads.csv").write_text(ADS)
    assert fingerprint(own(bad_corpus)) != fingerprint(own(elsewhere))


def test_a_simulated_world_has_no_fingerprint_of_files():
    assert fingerprint(composed("data=synthetic", "data/world=tiny")) == ""
