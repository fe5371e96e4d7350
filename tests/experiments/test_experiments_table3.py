import csv
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments import table3_embedding_accuracy as table3
from experiments.content import content_of, of_users
from experiments.record import read_record
from experiments.result import read_result
from experiments.rows import Found
from experiments.table3_embedding_accuracy import CLAIMS, REFERENCES, choice, encoders, main
from experiments.table3_lines import (
    KS,
    PAPER,
    SYSTEM,
    Ads,
    LineConfig,
    by_text,
    column,
    count,
    exchanged,
    paper_row,
    shares,
    tasks,
)
from leadre.artifacts import ArtifactError, Result
from leadre.inspection import accuracy
from leadre.inspection.accuracy import Task
from leadre.metrics.uncertainty import bootstrap_interval


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def left(store):
    """What the table leaves on the world for tests: two encoders, and two of the paper's whose weights are not here."""
    with pytest.raises(SystemExit, match=r"2 of 9 rows have holes: hunyuan, t5"):
        main(["data/world=tiny", f"store.root={store}", "seeds=0", "category=first", "encoders=lsa,hashing,hunyuan,t5"])
    return next((store / "studies" / "table3_embedding_accuracy").iterdir())


@pytest.fixture(scope="module")
def found(left):
    return read_result(left)


def test_the_whole_table_on_the_world_for_tests(found):
    rows = {row.name: row for row in found.rows}
    references = [row.name for row in REFERENCES]
    assert list(rows) == ["lsa", "hashing", "hunyuan", "t5", *references, "lsa, texts exchanged"]
    assert rows["t5"].not_run == "the weights of google-t5/t5-base are not on this machine"
    assert rows["t5"].paper == paper_row("t5")
    lsa, chance, exchanged = (rows[name].mean for name in ("lsa", "chance", "lsa, texts exchanged"))
    assert lsa["Top1"] > 0.9 > 5 * chance["Top1"]
    assert lsa["Top10"] <= rows["at most"].mean["Top10"]
    assert abs(exchanged["Top50"] - chance["Top50"]) < 0.05
    assert found.columns == found.compared == tuple(f"Top{k}" for k in KS)  # no two ads of this world have one text
    assert (found.users, found.unit) == (192, "texts of ads")
    assert found.data.name.endswith("first-level categories")
    assert "192 ads of 8 categories" in found.notes[-3]
    low, high = rows["hashing"].interval["Top10"]
    assert low < rows["hashing"].mean["Top10"] < high


def test_the_table_ends_as_a_study(left):
    assert {path.name for path in left.iterdir()} >= {"table.csv", "table.md", "figure.png", "report.html"}
    read_record(left / "result.json")
    lines = list(csv.DictReader((left / "table.csv").read_text().splitlines()))
    assert [line["row"] for line in lines if line["not_run"]] == ["hunyuan", "t5"]
    assert "not on this machine" in (left / "table.md").read_text()
    with Image.open(left / "figure.png") as image:
        assert image.size[0] > 1000


def test_of_too_few_seeds_even_a_large_difference_is_undecided(found):
    assert [claim.text for claim in found.claims] == ["the words of an ad tell its category"]
    claim = found.claims[0]
    assert claim.difference.low > 0.2
    assert claim.control == ("lsa, texts exchanged", "random vectors, one a text")
    assert claim.control_difference.low < 0.05
    assert claim.verdict == "undecided"
    assert claim.why.startswith("1 training seed: how much others would differ is not known")


def _whole_study(*arguments):
    task = Task(np.arange(200), np.arange(200), np.repeat(np.arange(2), 100))
    pools = {(pool, texts): task for pool in ("sample", "catalog") for texts in ("all", "distinct")}
    return table3.study_of(choice(arguments), pools)


def test_claims_about_encoders_that_are_not_here_are_undecided(found, store):
    study = _whole_study("encoders=lsa,hunyuan,e5_large_instruct")
    run = found.rows[0].runs[0]
    scores = {row.name: {} for row in study.rows}
    scores["lsa"][0] = Result("accuracy", run.key, store / run.path, 0.0, reused=True)
    content = content_of(study, Found(scores, {}, [0]), store=store, command="", seconds=0.0)
    claims = {claim.text: claim for claim in content.claims}
    assert len(claims) == 2
    best = claims["e5_large_instruct is ahead of hunyuan, the paper's next among the first 50"]
    assert (best.verdict, best.why) == ("undecided", "e5_large_instruct was not run")
    assert best.paper_change == pytest.approx(87.42 / 86.61 - 1)


def test_every_claim_is_about_rows_there_are_and_its_control_is_the_same_comparison_of_exchanged_texts():
    known, references = set(encoders()), {row.name for row in REFERENCES}
    for claim in CLAIMS:
        assert {claim.better, claim.worse} <= known | references, claim
        expected = (table3.exchanged(name) if name in known else name for name in (claim.better, claim.worse))
        assert claim.control == tuple(expected), claim
    controls = [row for row in _whole_study().rows if row.name not in known | references]
    assert {row.name for row in controls} == {
        name for claim in CLAIMS for name in claim.control if name not in references
    }
    assert all(row.control and row.overrides[1] == "line=exchanged" for row in controls)


def test_a_claim_that_an_encoder_is_ahead_names_who_follows_it_in_that_column_of_the_paper():
    """By hand from Table 3: Top1 98.03 Hunyuan, 97.24 BERT; Top10 96.48 E5, 96.46 Hunyuan, 92.65 BERT; Top50."""
    told = {(claim.better, claim.worse, claim.on) for claim in CLAIMS if "the paper's next" in claim.text}
    assert told == {
        ("hunyuan", "bert_chinese", "Top1"),
        ("hunyuan", "bert_chinese", "Top10"),
        ("hunyuan", "bge_m3", "Top50"),
        ("e5_large_instruct", "hunyuan", "Top50"),
    }
    for better, worse, on in told:
        assert better in next(c.text for c in CLAIMS if (c.better, c.on) == (better, on))
        between = [name for name in PAPER if paper_row(worse)[on] < paper_row(name)[on] < paper_row(better)[on]]
        assert not between


def test_rows_without_anything_random_are_told():
    one, other = (Result("accuracy", key, table3.CONF, 0.0, reused=True) for key in "ab")
    ran = Found({"bge_m3": {0: one, 1: one}, "lsa": {0: one, 1: other}, "t5": {}}, {}, [0, 1])
    (told,) = table3._told_of_seeds(ran)
    assert told.startswith("Nothing is random in these rows, each is one result with every seed")
    assert ": bge_m3. Where both rows" in told
    assert table3._told_of_seeds(Found({"bge_m3": {0: one}}, {}, [0])) == []


def test_without_the_words_of_the_category_an_encoder_finds_less(store):
    tops = {}
    for text in ("full", "name"):
        asked = choice(["data/world=tiny", f"store.root={store}", "encoders=hashing", f"text={text}"])
        result = table3.counted(asked, [*asked.overrides, "embedding=hashing"], 0)
        tops[text] = json.loads((result.path / "scores.json").read_text())["systems"][SYSTEM]["Top1"]
        assert ("names alone" in table3._data_name(asked, "x")) == (text == "name")
    assert tops["name"] < tops["full"]


def test_wrong_arguments_are_told_before_anything_runs():
    for argument, message in (
        ("encoders=lsa,word2vec", "encoders has 'word2vec', which is none of hunyuan, "),
        ("category=third", "category is 'third', but must be second or first"),
        ("text=title", "text is 'title', but must be full or name"),
        ("seed=x", "seed is 'x', but must be a whole number of 0 or more"),
        ("seeds=0,0", "seeds is '0,0', but must be different whole numbers"),
        ("quantizer.levels=0", r"quantizer\.levels: Input should be greater than or equal to 1 \(got 0\)"),
        ("lsa", "'lsa' is no key=value; --help tells what there is"),
        ("--cfg=job", "'--cfg=job' is no key=value"),
        ("embedding=lsa", "embedding=lsa: encoders are named by encoders=NAME,NAME"),
        ("overrides=1", "overrides: unknown key"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["encoders=lsa", argument])


def test_help_tells_how_it_is_called_and_which_encoders_there_are(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert "python -m experiments.table3_embedding_accuracy category=first" in shown
    assert f"encoders: {', '.join(encoders())}" in shown


def test_an_encoders_own_settings_can_be_set_and_are_checked_for_each_that_is_named(tmp_path):
    for argument in ("embedding.precision=bf16", f"embedding.model={tmp_path}"):
        asked = choice(["data/world=tiny", "encoders=bge_m3", argument])
        table3.check_all(asked)
        config = table3.config_of("embedding=bge_m3", *asked.overrides).embedding
        assert config.pooling == "cls"
        assert str(getattr(config, argument.partition("=")[0].removeprefix("embedding."))) == argument.partition("=")[2]
    told = r"^encoders=lsa: The configuration is wrong:\n  embedding.precision: unknown key \(got bf16\)$"
    with pytest.raises(ValueError, match=told):
        table3.check_all(choice(["encoders=lsa,hunyuan", "embedding.precision=bf16"]))


def test_encoders_that_fail_are_told_and_the_others_run(store, monkeypatch):
    def vectors(config, store, world):
        if config.embedding.kind == "transformer":
            raise ArtifactError("a shard is broken")
        return whole(config, store, world)

    whole = table3.vectors
    monkeypatch.setattr(table3, "available", lambda _: "weights")
    monkeypatch.setattr(table3, "vectors", vectors)
    asked = choice(["data/world=tiny", f"store.root={store}", "seeds=0", "encoders=hashing,bge_m3"])
    study, found, _ = table3.table3(asked)
    assert found.not_run == {"bge_m3": "seed 0: ArtifactError: a shard is broken"}
    assert {row.name for row in study.rows if found.scores[row.name]} == {"hashing", *(row.name for row in REFERENCES)}


def test_no_encoder_at_all_is_an_error(store):
    with pytest.raises(SystemExit, match=r"none of the encoders can run: the weights of .*; use encoders=lsa,hashing"):
        main(["data/world=tiny", "encoders=xlnet_chinese", f"store.root={store}"])


def test_every_encoder_of_the_paper_is_asked_for_unless_some_are_named():
    assert encoders()[: len(PAPER)] == tuple(PAPER)
    assert set(choice([]).encoders) >= {*PAPER, "lsa", "hashing"}
    assert not set(choice([]).encoders) & {"transformer", "vectors"}
    assert choice([]).overrides == ("data/world=paper",)
    asked = choice(["encoders=lsa,lsa", "data=amazon_beauty", "data.root=x", "seed=3", "category=first"])
    assert asked == (("lsa",), "first", "full", 3, (0, 1, 2), ("data=amazon_beauty", "data.root=x"))
    assert choice(["encoders=lsa", "seeds=5,7"]).seeds == (5, 7)


def _ads(categories, texts):
    return Ads(np.arange(len(texts)), pl.Series("second_category", categories), np.array(texts))


def test_one_ad_a_text_leaves_out_copies_from_queries_and_pool():
    ads = _ads(["a", "a", "a", "b", "b", None], [0, 0, 1, 2, 3, 4])
    made = tasks(ads, seed=0)
    assert made["sample", "all"].queries.tolist() == [0, 1, 2, 3, 4]
    assert made["catalog", "all"].pool.tolist() == [0, 1, 2, 3, 4, 5]
    assert made["sample", "distinct"].queries.tolist() == [0, 2, 3, 4]
    assert made["catalog", "distinct"].pool.tolist() == [0, 2, 3, 4, 5]
    assert made["sample", "all"].category.tolist() == [0, 0, 0, 1, 1, -1]
    with pytest.raises(ValueError, match="second_category: no category has two ads, so nothing can be found"):
        tasks(_ads(["a"], [0]), seed=0)


def test_the_mean_over_texts_is_that_over_a_categorys_ads_then_over_the_categories():
    """By hand: category 0 has ads 0, 1, 2 (texts 5, 5, 6), category 1 has ads 3, 4 (texts 7, 8)."""
    task = Task(np.arange(5), np.arange(5), np.array([0, 0, 0, 1, 1]))
    values = np.array([[1.0], [1.0], [0.0], [0.0], [0.5]])
    units, found = by_text(values, task, np.array([5, 5, 6, 7, 8]))
    assert units.tolist() == [5, 6, 7, 8]
    mean = (2 / 3 + 1 / 4) / 2  # a query weighs 4 texts / 2 categories / 3 or 2 ads: 2/3 or 1
    weighed = [2 / 3 * (1 / 3 + 1 / 3), 2 / 3 * (0 - 2 / 3), 0 - 1 / 4, 1 / 2 - 1 / 4]
    assert found[:, 0].tolist() == pytest.approx([mean + one for one in weighed])
    assert found.mean() == pytest.approx(mean)


def test_the_mean_over_texts_is_the_macro_mean_whatever_the_sizes():
    generator = np.random.default_rng(0)
    category, texts = generator.integers(7, size=90), generator.integers(40, size=90)
    task = Task(np.arange(90), np.arange(90), category)
    values = generator.random((90, 3))
    assert by_text(values, task, texts)[1].mean(axis=0) == pytest.approx(accuracy.macro(values, task))


def _interval_by_text(values, category, texts):
    task = Task(np.arange(len(texts)), np.arange(len(texts)), category)
    ends = bootstrap_interval(
        by_text(values, task, texts)[1], samples=4000, confidence=0.95, generator=np.random.default_rng(1)
    )
    return np.stack(ends)


def test_the_interval_is_that_of_drawing_each_categorys_ads_again():
    """Texts that occur once: the plain bootstrap within each category, category by category."""
    generator = np.random.default_rng(0)
    category = np.repeat(np.arange(3), (20, 40, 90))
    values = (generator.random((150, 1)) + category[:, None]) / 3
    draws = [values[category == one][generator.integers(size, size=(4000, size)), 0].mean(axis=1)
             for one, size in enumerate((20, 40, 90))]  # fmt: skip
    theirs = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    np.testing.assert_allclose(_interval_by_text(values, category, np.arange(150))[:, 0], theirs, atol=0.003)


def test_copies_of_a_text_make_no_interval_narrower():
    values, category, copies = (
        np.random.default_rng(0).random((40, 1)),
        np.repeat([0, 1], 20),
        np.repeat(np.arange(40), 9),
    )
    once = _interval_by_text(values, category, np.arange(40))
    np.testing.assert_allclose(_interval_by_text(values[copies], category[copies], copies), once)


def test_what_all_ads_share_has_no_error_however_many_ads_a_text_has():
    texts = np.array([0, 0, 0, 0, 1, 2, 2, 3])
    np.testing.assert_allclose(_interval_by_text(np.ones((8, 1)), np.repeat([0, 1], 4), texts), 1.0, atol=1e-12)


def _config(kind, seed=0):
    return LineConfig(kind=kind, category="second", sample=0, seed=seed)


def test_random_vectors_are_chance_where_no_two_ads_have_one_text():
    category = np.repeat(np.arange(10), 20)
    task = Task(np.arange(200), np.arange(200), category)
    chance = accuracy.macro(shares(_config("chance"), task, np.arange(200), None), task)
    for kind in ("random_ads", "random_texts", "exchanged"):
        values = shares(_config(kind), task, np.arange(200), np.eye(200, dtype=np.float32))
        assert accuracy.macro(values, task) == pytest.approx(chance, abs=0.06), kind


def test_a_random_vector_a_text_finds_the_copies_and_a_random_vector_an_ad_does_not():
    category, texts = np.repeat(np.arange(10), 20), np.repeat(np.arange(100), 2)
    task = Task(np.arange(200), np.arange(200), category)
    assert (shares(_config("random_texts"), task, texts, None)[:, 0] == 1).all()
    assert shares(_config("random_ads"), task, texts, None)[:, 0].mean() < 0.3


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**32))
def test_exchanged_texts_keep_vectors_and_copies(texts, seed):
    texts = np.array(texts)
    x = np.stack([texts, texts**2], axis=1).astype(np.float32)
    mixed = exchanged(x, texts, np.random.default_rng(seed))
    assert {tuple(row) for row in mixed} == {tuple(row) for row in x}  # a permutation of the texts' vectors
    pairs = {(text, *row) for text, row in zip(texts, mixed, strict=True)}
    assert len(pairs) == len(set(texts))  # ads of one text share one


def test_what_finds_categories_finds_none_with_texts_exchanged_but_still_its_copies():
    category, texts = np.repeat(np.arange(10), 20), np.repeat(np.arange(100), 2)
    task = Task(np.arange(200), np.arange(200), category)
    x = np.random.default_rng(0).normal(size=(100, 16))[texts].astype(np.float32) + 9 * np.eye(16)[category]
    x = x.astype(np.float32)
    assert shares(_config("embedding"), task, texts, x)[:, 1].mean() > 0.9
    found = shares(_config("exchanged"), task, texts, x)
    assert (found[:, 0] == 1).all()
    copies = shares(_config("random_texts"), task, texts, None)
    assert found[:, 1].mean() == pytest.approx(copies[:, 1].mean(), abs=0.06)


def test_the_same_seed_draws_the_same_vectors_and_a_cut_beyond_the_pool_is_empty():
    task = Task(np.arange(12), np.arange(12), np.array([0] * 6 + [1] * 6))
    one, other = (shares(_config("random_ads", seed), task, np.arange(12), None) for seed in (1, 2))
    np.testing.assert_array_equal(one, shares(_config("random_ads", 1), task, np.arange(12), None))
    assert not np.array_equal(one[:, :2], other[:, :2])
    assert np.isnan(one[:, 2:]).all()
    assert np.isnan(shares(_config("at_most"), task, np.arange(12), None)[:, 2:]).all()
    with pytest.raises(ValueError, match="kind is 'exchanged', which needs an encoder's vectors: give embeddings"):
        shares(_config("exchanged"), task, np.arange(12), None)


def test_what_is_left_of_a_line_reads_as_scores_of_users_do(tmp_path, store, left):
    world = next((store / "world").glob("*/ads.parquet")).parent
    count(_config("random_ads"), world, out=tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())["systems"][SYSTEM]
    result = Result("accuracy", "key", tmp_path, 0.0, reused=True)
    for pool, texts in (("sample", "all"), ("catalog", "distinct")):
        for name in (column(pool, texts, k) for k in KS):
            assert of_users([result], SYSTEM, name).mean() == pytest.approx(scores[name]), name


def test_the_papers_table_says_that_e5_leads_from_the_tenth_ad_on_and_hunyuan_at_the_first():
    leaders = [max(PAPER, key=lambda name: PAPER[name][place]) for place in range(len(KS))]
    assert leaders == ["hunyuan", *["e5_large_instruct"] * 3]
