"""A scan of whole composed data for what a prompt may not know, written apart from the code that composes it.

Everything is counted anew from the raw tables with plain loops: who is tested on what, what a target's user did
strictly before it, and what a summary may have counted. A pair is sound if it is what some target of its user and role
must be, and no target is that of two pairs.
"""

import json
import os
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from hydra import compose as compose_config
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from leadre import tables
from leadre.data.config import DataConfig
from leadre.data.gather import gather
from leadre.prompts.compose import compose
from leadre.prompts.config import PromptsConfig
from leadre.prompts.wording import wording_of

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LEADRE_DATA", ROOT.parent / "shared" / "data"))
DAY = 86_400
TINY = ("data=synthetic", "data/world=tiny", "data.world.users.num_users=40")
SWITCHES = {
    "short": ("prompts=short",),
    "paper": ("prompts=paper",),
    "everything counted and capped": (
        "prompts=short",
        "prompts.reuse_every=1",
        "prompts.summary_by=[spu,category]",
        "prompts.summary_negatives=true",
        "prompts.max_ad_behaviors=2",
        "prompts.window_days=9",
        "prompts.content_title=title_spu",
    ),
    "templates and profiles": ("prompts=short", "prompts.template_seed=0", "prompts.profile_seed=1"),
    "drawn targets": ("prompts=short", "prompts.reuse_every=3", "prompts.reuse_seed=0"),
    "since last": ("prompts=paper", "prompts.times=since_last", "prompts.window_days=20"),
    "several ads": ("prompts=short", "prompts.reuse_every=1", "prompts.next_n=3", "prompts.next_n_control=0"),
    "ads alone": ("prompts=short", "prompts.content_behaviors=false", "prompts.summary_negatives=true"),
}
AGAIN = ("short", "ads alone")
"""Switches whose parts others have."""


class Log(NamedTuple):
    """What one user did, oldest first: times, and as many (domain, item_id)."""

    times: list
    items: list

    def between(self, since, until, domains):
        """(time, domain, item_id) of the rows with since <= time < until."""
        found = range(bisect_left(self.times, since), bisect_left(self.times, until))
        return [(self.times[row], *self.items[row]) for row in found if self.items[row][0] in domains]


class Raw(NamedTuple):
    """A world as its tables tell it: ``about`` maps (domain, item_id) to what summaries and prompts say of it."""

    behaviors: dict
    negatives: dict
    targets: dict
    about: dict
    wording: object
    min_ads: int


def raw_of(world, *, min_ads):
    """Read the raw tables; the targets of each role are told by the rule, not by the split."""
    read = {name: pl.read_parquet(world / f"{name}.parquet") for name in ("ads", "contents", "behaviors", "negatives")}
    about = {
        ("ad", ad_id): {"category": category, "spu": spu, "text": description}
        for ad_id, category, spu, description in read["ads"]
        .select("ad_id", "first_category", "spu", "description")
        .iter_rows()
    }
    about |= {
        ("content", item_id): {"category": category, "spu": spu, "text": title or ""}
        for item_id, title, category, spu in read["contents"].iter_rows()
    }
    logs = {}
    for name in ("behaviors", "negatives"):
        rows = sorted(read[name].iter_rows(), key=lambda row: row[4])  # stable: equal times keep the table's order
        logs[name] = defaultdict(lambda: Log([], []))
        for user, item, domain, _, time in rows:
            logs[name][user].times.append(time)
            logs[name][user].items.append((domain, item))
    language = json.loads((world / "world.json").read_text(encoding="utf-8"))["language"]
    targets = _targets(logs["behaviors"], min_ads)
    return Raw(logs["behaviors"], logs["negatives"], targets, about, wording_of(language), min_ads)


def _targets(behaviors, min_ads):
    """(role, user, ad) -> times."""
    targets = defaultdict(list)
    for user, log in behaviors.items():
        ads = [(time, item) for time, (domain, item) in zip(*log, strict=True) if domain == "ad"]
        if len(ads) >= min_ads:
            (valid_time, valid), (test_time, test) = ads[-2:]
            targets["valid", user, valid].append(valid_time)
            targets["test", user, test].append(test_time)
            ads = [(time, ad) for time, ad in ads[:-2] if time < valid_time]
        for time, ad in ads:
            targets["train", user, ad].append(time)
    return targets


def scan(pairs, *, task, role, raw, config):
    """The faults of the pairs of one file, a line each."""
    found, used = [], defaultdict(list)
    for number, pair in enumerate(row for some in pairs.iter_slices(2000) for row in some.to_dicts()):
        if task == "explicit":
            faults = _explicit_faults(pair, raw)
        else:
            key = role, pair["user_id"], pair["ad_id"]
            left = (Counter(raw.targets.get(key, [])) - Counter(used[key])).elements()
            faults_at = {time: _faults(pair, time, task, raw, config) for time in left}
            time = min(faults_at, key=lambda time: len(faults_at[time]), default=None)
            faults = ["no such target in this role, or one of another pair"] if time is None else faults_at[time]
            used[key] += [] if faults else [time]
        if faults:
            found.append(f"{task}.{role} row {number}: {faults}")
    return found


def _explicit_faults(pair, raw):
    alone = pair["user_id"] is None and not pair["behaviors"] and not pair["following"]
    own = _plain(pair["head"][-1]) == raw.about["ad", pair["ad_id"]]["text"]
    clean = all(segment["kind"] != "ad" for segment in pair["head"] + pair["tail"])
    return [] if alone and own and clean else ["an explicit prompt holds more than its ad's description"]


def _faults(pair, time, task, raw, config):
    user, target = pair["user_id"], ("ad", pair["ad_id"])
    domains = {"ad"} & ({"ad"} if config.ad_behaviors else set())
    domains |= {"content"} if config.content_behaviors else set()
    since = time - config.window_days * DAY
    seen = raw.behaviors[user].between(since, time, domains)
    shown = _capped(seen, config)[-len(pair["behaviors"]) :] if pair["behaviors"] else []
    faults = []
    if config.times == "ago" and len(shown) != len(_capped(seen, config)):
        faults.append(f"{len(pair['behaviors'])} behaviors, of {len(_capped(seen, config))} before the target")
    if [_what(behavior) for behavior in pair["behaviors"]] != [_told(row, task, raw, config) for row in shown]:
        faults.append("its behaviors are not those before the target")
    if [int(re.search(r"\d+", behavior[0]["value"])[0]) for behavior in pair["behaviors"]] != _days(
        shown, time, config
    ):
        faults.append("its behaviors did not happen when it says")
    if _times_told(pair, target, task, raw) != _times_shown(shown, target, task, raw):
        faults.append("its own target stands in it more often than the user met it before")
    faults += _summary_faults(pair, seen, raw.negatives[user].between(since, time, domains), raw, config)
    if task == "next_n":
        later = _later_targets(user, time, raw)
        if not set(pair["following"]) <= later - {pair["ad_id"]} or len(set(pair["following"])) < len(
            pair["following"]
        ):
            faults.append("what follows in its response is no later train target")
    elif task != "next_n_control" and pair["following"]:
        faults.append("it answers with several ads")
    return faults


def _capped(seen, config):
    most = {"ad": config.max_ad_behaviors, "content": config.max_content_behaviors}
    left = {domain: min(number or config.max_tokens, config.max_tokens) for domain, number in most.items()}
    kept = []
    for row in reversed(seen):
        left[row[1]] -= 1
        if left[row[1]] >= 0:
            kept.append(row)
    return kept[::-1]


def _plain(segment):
    return re.sub(r"\\(.)", r"\1", segment["value"], flags=re.DOTALL)


def _what(behavior):
    return behavior[1]["kind"], behavior[1]["value"] if behavior[1]["kind"] == "ad" else _plain(behavior[1])


def _told(row, task, raw, config):
    """What stands for a behavior in a prompt of a catalog that holds every ad."""
    _, domain, item = row
    about = raw.about[domain, item]
    if domain == "ad":
        return ("text", about["text"]) if task == "implicit" else ("ad", item)
    has_spu = config.content_title == "title_spu" and about["spu"]
    return "text", about["text"] + (f"/{about['spu']}" if has_spu else "")


def _days(shown, time, config):
    if config.times == "ago":
        return [(time - row[0]) // DAY for row in shown]
    return [(row[0] - before[0]) // DAY for before, row in zip([*shown[:1], *shown], shown, strict=False)]


def _times_told(pair, target, task, raw):
    """How often the target stands anywhere in the prompt."""
    parts = [pair["head"], pair["lead"], *pair["behaviors"], pair["tail"]]
    if task == "implicit":
        return sum(_plain(segment) == raw.about[target]["text"] for part in parts for segment in part)
    return sum(segment == {"kind": "ad", "value": target[1]} for part in parts for segment in part)


def _times_shown(shown, target, task, raw):
    if task == "implicit":  # two ads may have one description, and a title may be one
        return sum(raw.about[row[1:]]["text"] == raw.about[target]["text"] for row in shown)
    return sum(row[1:] == target for row in shown)


def _summary_faults(pair, seen, unwanted, raw, config):
    wording, segments = raw.wording, pair["head"] + pair["tail"]
    openings = {
        ("seen", "category"): wording.summary,
        ("seen", "spu"): wording.summary_spu,
        ("unwanted", "category"): wording.summary_negative,
        ("unwanted", "spu"): wording.summary_negative_spu,
    }
    faults = []
    for (kind, by), opening in openings.items():
        rows = seen if kind == "seen" else unwanted
        wanted = config.summary and by in config.summary_by and (kind == "seen" or config.summary_negatives)
        counts = Counter(raw.about[row[1:]][by] for row in rows if raw.about[row[1:]][by]) if wanted else Counter()
        told = _told_counts(segments, opening, wording)
        highest = sorted(counts.values(), reverse=True)[: config.summary_categories]
        if [number for _, number in told] != highest or any(counts[name] != number for name, number in told):
            faults.append(f"its summary ({kind}, {by}) counts {told}, of {counts.most_common()}")
        if len(dict(told)) < len(told):
            faults.append(f"its summary ({kind}, {by}) names something twice")
    return faults


def _told_counts(segments, opening, wording):
    """The (name, number) pairs behind an opening."""
    places = [place for place, segment in enumerate(segments) if segment["value"] == opening]
    assert len(places) < 2, "a summary stands twice"
    told = []
    times = re.escape(wording.category).replace(re.escape("{}"), r"(\d+)")
    for place in range(places[0] + 1, len(segments) - 1, 2) if places else ():
        number = re.fullmatch(times, segments[place + 1]["value"])
        if number is None:
            break
        told.append((_plain(segments[place]), int(number[1])))
    return told


def _later_targets(user, time, raw):
    return {ad for (role, of, ad), times in raw.targets.items() if (role, of) == ("train", user) and max(times) >= time}


def make_world(folder, *overrides):
    """Gather a world, and give each of its ads an S-ID."""
    world, catalog = folder / "world", folder / "catalog"
    world.mkdir(parents=True)
    catalog.mkdir()
    config = _group("data", *overrides, schema=DataConfig)
    gather(config, out=world)
    ads = tables.read(tables.ADS, world / "ads.parquet")["ad_id"]
    sids = [[row // 64, row % 64] for row in range(len(ads))]
    names = [f"<a_{first}> <b_{second}>" for first, second in sids]
    frame = pl.DataFrame({"ad_id": ads, "sid": sids, "name": names}, schema=tables.SIDS.schema)
    tables.write(tables.SIDS, frame, catalog / "sids.parquet")
    return world, catalog, raw_of(world, min_ads=config.min_ads)


def _group(name, *overrides, schema):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(compose_config("run", list(overrides)), resolve=True)[name]
    return TypeAdapter(schema).validate_json(json.dumps(plain))


def prompts_config(*overrides):
    return _group("prompts", *overrides, schema=PromptsConfig)


def scan_all(folder, world, catalog, raw, config):
    """Compose, and scan every file; the faults and the number of pairs by file."""
    out = folder / "pairs"
    out.mkdir(parents=True)
    compose(config, world, catalog, out=out)
    found, counts = [], {}
    for path in sorted(out.glob("*.parquet")):
        task, role = path.stem.split(".")
        pairs = pl.read_parquet(path)
        counts[path.stem] = pairs.height
        found += scan(pairs, task=task, role=role, raw=raw, config=config)
    return found, counts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("tiny"), *TINY)


@pytest.mark.parametrize(
    "switches",
    [pytest.param(given, id=name, marks=[pytest.mark.slow] * (name in AGAIN)) for name, given in SWITCHES.items()],
)
def test_no_prompt_of_the_simulated_world_knows_what_it_may_not(tiny, tmp_path, switches):
    found, counts = scan_all(tmp_path, *tiny, prompts_config(*switches))
    assert not found, found[:3]
    assert min(counts[name] for name in ("main.train", "main.valid", "main.test", "implicit.train")) > 10
    assert ("next_n.train" in counts) == any("next_n=" in switch for switch in switches)


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches", [SWITCHES["short"], SWITCHES["everything counted and capped"]], ids=["short", "all"]
)
@pytest.mark.parametrize("source", ["completejourney", "amazon_beauty"])
def test_no_prompt_of_real_data_knows_what_it_may_not(tmp_path, source, switches):
    if not (DATA / source).is_dir():
        pytest.skip(f"{source} is not in the folder LEADRE_DATA")
    made = make_world(tmp_path, f"data={source}", f"data.root={DATA / source}", "alignment=none")
    found, counts = scan_all(tmp_path / "scanned", *made, prompts_config(*switches))
    assert not found, found[:3]
    assert counts["main.test"] > 1000


PLANTS = (
    "prompts=short",
    "prompts.reuse_every=1",
    "prompts.max_content_behaviors=null",
    "prompts.summary_negatives=true",
)


class Planted(NamedTuple):
    """Sound pairs, and what scans them."""

    pairs: dict
    raw: Raw
    config: PromptsConfig

    def faults(self, task, changed):
        schema = pl.read_parquet(self.pairs[task]).schema
        frame = pl.DataFrame([changed], schema=schema)
        found = scan(frame, task=task.split(".")[0], role=task.split(".")[1], raw=self.raw, config=self.config)
        return " ".join(found)

    def rows(self, task):
        return pl.read_parquet(self.pairs[task]).to_dicts()


@pytest.fixture(scope="module")
def planted(tiny, tmp_path_factory):
    world, catalog, raw = tiny
    out = tmp_path_factory.mktemp("planted")
    config = prompts_config(*PLANTS)
    compose(config, world, catalog, out=out)
    return Planted({path.stem: path for path in out.glob("*.parquet")}, raw, config)


def _ads(pair):
    return [behavior[1]["value"] for behavior in pair["behaviors"] if behavior[1]["kind"] == "ad"]


def _with_count_added(planted, pair, opening):
    """The pair with one more in the first count behind an opening."""
    for part in ("head", "tail"):
        values = [segment["value"] for segment in pair[part]]
        if opening in values:
            segment = pair[part][values.index(opening) + 2]
            segment["value"] = re.sub(r"\d+", lambda found: str(int(found[0]) + 1), segment["value"])
            return pair
    return None


def test_the_papers_sample_that_holds_its_own_target_is_found(planted):
    """LEADRE 4.2.2: of c1, a2, a3, c4, a5 the sample ``<[c1, a2, a3, c4, a5], a3>``."""
    pairs = [pair for pair in planted.rows("main.test") if len(set(_ads(pair))) > 1]
    assert pairs
    for pair in pairs:
        for ad in set(_ads(pair)):
            assert planted.faults("main.train", pair | {"ad_id": ad}), ad


def test_a_prompt_that_ends_with_its_own_target_is_found(planted):
    for task, what in (("main.train", "ad"), ("implicit.train", "text")):
        once = [
            pair
            for pair in planted.rows(task)
            if len(planted.raw.targets["train", pair["user_id"], pair["ad_id"]]) == 1
        ]
        assert len(once) > 10
        for pair in once[:30]:
            assert not planted.faults(task, pair)
            told = pair["ad_id"] if what == "ad" else planted.raw.about["ad", pair["ad_id"]]["text"]
            last = [{"kind": "text", "value": "0 days ago^click on ad^"}, {"kind": what, "value": told}]
            end = [{"kind": "text", "value": ". "}]
            longer = pair | {"behaviors": [*pair["behaviors"], last + end]}
            assert "its own target stands in it more often" in planted.faults(task, longer)


@pytest.mark.parametrize("part", ["head", "lead", "tail"])
def test_a_target_outside_the_behaviors_is_found(planted, part):
    pair = planted.rows("main.test")[0]
    leak = {"kind": "ad", "value": pair["ad_id"]}
    assert "its own target stands in it" in planted.faults("main.test", pair | {part: [leak, *pair[part]]})


@pytest.mark.parametrize("kind", ["seen", "unwanted"])
def test_a_summary_with_one_count_too_many_is_found(planted, kind):
    wording = planted.raw.wording
    opening = wording.summary if kind == "seen" else wording.summary_negative
    changed = [_with_count_added(planted, pair, opening) for pair in planted.rows("main.train")]
    changed = [pair for pair in changed if pair is not None]
    assert len(changed) > 10
    assert all(f"its summary ({kind}, category) counts" in planted.faults("main.train", pair) for pair in changed[:30])


def test_a_summary_that_leaves_out_or_doubles_a_name_is_found(planted):
    wording = planted.raw.wording
    pair = next(pair for pair in planted.rows("main.test") if wording.summary in [one["value"] for one in pair["tail"]])
    place = [one["value"] for one in pair["tail"]].index(wording.summary)
    less = pair["tail"][: place + 1] + pair["tail"][place + 3 :]
    more = pair["tail"][: place + 3] + pair["tail"][place + 1 :]
    assert "its summary (seen, category) counts" in planted.faults("main.test", pair | {"tail": less})
    assert "names something twice" in planted.faults("main.test", pair | {"tail": more})


@pytest.mark.parametrize("role", ["valid", "test"])
def test_a_held_out_target_in_training_is_found(planted, role):
    pairs = planted.rows(f"main.{role}")
    found = [planted.faults("main.train", pair) for pair in pairs]
    assert all(found)
    assert any("no such target in this role" in fault for fault in found)


def test_a_train_prompt_of_the_time_of_a_held_out_one_is_found(planted):
    """The response is sound; the prompt is that of the user's test target, so it holds the valid target."""
    late = {pair["user_id"]: pair for pair in planted.rows("main.test")}
    pairs = [pair for pair in planted.rows("main.train") if pair["user_id"] in late]
    assert pairs
    for pair in pairs:
        assert planted.faults("main.train", late[pair["user_id"]] | {"ad_id": pair["ad_id"]})


def test_behaviors_left_out_moved_or_told_at_another_time_are_found(planted):
    pair = next(pair for pair in planted.rows("main.test") if len(pair["behaviors"]) > 3)
    first, *rest = pair["behaviors"]
    assert "behaviors, of" in planted.faults("main.test", pair | {"behaviors": rest})
    assert "are not those before the target" in planted.faults("main.test", pair | {"behaviors": [*rest, first]})
    later = [{"kind": "text", "value": "0 days ago^click^"}, *first[1:]]
    assert "did not happen when it says" in planted.faults("main.test", pair | {"behaviors": [later, *rest]})


def test_an_explicit_prompt_with_anothers_description_is_found(planted):
    first, second = planted.rows("explicit.train")[:2]
    assert not planted.faults("explicit.train", first)
    swapped = first | {"ad_id": second["ad_id"]}
    assert "holds more than its ad's description" in planted.faults("explicit.train", swapped)


def test_a_response_that_goes_on_with_a_held_out_ad_is_found(tiny, tmp_path):
    world, catalog, raw = tiny
    config = prompts_config(*SWITCHES["several ads"])
    compose(config, world, catalog, out=tmp_path)
    pairs = pl.read_parquet(tmp_path / "next_n.train.parquet")
    held_out = {user: ad for role, user, ad in raw.targets if role == "test"}
    changed = [
        pair | {"following": [held_out[pair["user_id"]]]}
        for pair in pairs.to_dicts()
        if pair["user_id"] in held_out and ("train", pair["user_id"], held_out[pair["user_id"]]) not in raw.targets
    ]
    assert changed
    frame = pl.DataFrame(changed, schema=pairs.schema)
    found = scan(frame, task="next_n", role="train", raw=raw, config=config)
    assert len(found) == len(changed)
    assert "what follows in its response is no later train target" in found[0]


def test_a_pair_that_stands_twice_is_found(planted):
    pairs = pl.read_parquet(planted.pairs["main.test"])
    found = scan(pl.concat([pairs, pairs]), task="main", role="test", raw=planted.raw, config=planted.config)
    assert len(found) == pairs.height
    assert "or one of another pair" in found[0]


def test_a_split_that_is_a_second_late_lets_targets_into_their_own_prompts_and_is_found(tiny, tmp_path):
    """All that composes is in order, and what it was told is wrong: each target stands in its own history."""
    world, catalog, raw = tiny
    late = tmp_path / "late"
    late.mkdir()
    for path in world.iterdir():
        (late / path.name).write_bytes(path.read_bytes())
    split = tables.read(tables.SPLIT, world / "split.parquet")
    tables.write(tables.SPLIT, split.with_columns(pl.col("time") + 1), late / "split.parquet")
    found, counts = scan_all(tmp_path, late, catalog, raw, prompts_config("prompts=short"))
    # A click and a conversion with nothing between: the prompt of the first is then that of the second.
    assert len(found) > 0.95 * sum(count for name, count in counts.items() if name != "explicit.train")
    assert sum("its own target stands in it more often" in fault for fault in found) > 0.9 * len(found)
