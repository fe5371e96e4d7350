import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from experiments import table3_embedding_accuracy as table3
from experiments.table3_embedding_accuracy import choice, encoders, main, tasks
from experiments.table3_lines import DRAWS, PAPER, Line, behind, grid, interval, measured, references, resampled
from leadre.artifacts import ArtifactError
from leadre.inspection.accuracy import Task
from leadre.metrics.uncertainty import bootstrap_interval, paired_bootstrap


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def run(store, tmp_path, capsys, monkeypatch):
    """The table on the world for tests."""

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        main(["data/world=tiny", f"store.root={store}", *arguments])
        out = max(Path("outputs/table3_embedding_accuracy").iterdir())
        return json.loads(capsys.readouterr().out.splitlines()[-1]), out

    return run


def test_the_whole_table_on_the_world_for_tests(run):
    """Two encoders; one of the paper's has no weights here."""
    told, out = run("category=first", "encoders=lsa,hashing,xlnet_chinese")
    assert (told["data"], told["category"], told["categories"], told["queries"]) == (
        "synthetic",
        "first_category",
        8,
        192,
    )
    assert told["not_run"].keys() == {"xlnet_chinese"}
    assert "are not on this machine" in told["not_run"]["xlnet_chinese"]
    found = told["accuracy"]["sample, all"]
    assert found["lsa"][0] > 0.9 > 5 * found["chance"][0]
    assert found["lsa"][1] <= found["at most"][1]
    assert abs(found["shuffled ads"][2] - found["chance"][2]) < 0.05
    text = (out / "table3.md").read_text()
    assert "## Not run\n\n- xlnet_chinese: the weights of" in text
    assert text.count("| lsa |") == 4
    assert "python -m experiments.table3_embedding_accuracy data/world=tiny" in text
    rows = list(csv.DictReader((out / "table3.csv").read_text().splitlines()))
    assert len(rows) == 4 * 5 * 4
    against = {row["encoder"]: row["less_best"] for row in rows if row["k"] == "10" and row["pool"] == "catalog"}
    assert sorted(map(bool, against.values())) == [False] * 4 + [True]  # of two encoders one is the best
    assert {row["pool"] for row in rows} == {"sample", "catalog"}
    with Image.open(out / "table3.png") as image:
        assert image.size[0] > 1000


def test_without_the_words_of_the_category_an_encoder_finds_less(run):
    full, _ = run("encoders=hashing")
    name, _ = run("encoders=hashing", "text=name")
    assert name["text"] == "name"
    assert name["accuracy"]["sample, all"]["hashing"][0] < full["accuracy"]["sample, all"]["hashing"][0]


def test_wrong_arguments_are_told_before_anything_runs():
    for argument, message in (
        ("encoders=lsa,word2vec", "encoders has 'word2vec', which is none of hunyuan, "),
        ("category=third", "category is 'third', but must be second or first"),
        ("text=title", "text is 'title', but must be full or name"),
        ("seed=x", "seed is 'x', but must be a whole number of 0 or more"),
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
        asked = choice(["data/world=tiny", "encoders=hunyuan,bge_m3", argument])
        table3.check_all(asked)
        config = table3.config_of(asked.overrides, "bge_m3").embedding
        assert config.pooling == "cls"
        assert str(getattr(config, argument.partition("=")[0].removeprefix("embedding."))) == argument.partition("=")[2]
    told = r"^encoders=lsa,hashing: The configuration is wrong:\n  embedding.precision: unknown key \(got bf16\)$"
    with pytest.raises(ValueError, match=told):
        table3.check_all(choice(["encoders=lsa,hunyuan,hashing", "embedding.precision=bf16"]))


def test_encoders_that_fail_are_told_and_the_others_run(run, monkeypatch):
    errors = {"cls": ValueError("a shard\nis broken"), "mean": ArtifactError("no manifest"), "last": OSError("no disk")}

    def vectors(config, store, world):
        if config.embedding.kind == "transformer":
            raise errors[config.embedding.pooling]
        return whole(config, store, world)

    whole = table3.vectors
    monkeypatch.setattr(table3, "available", lambda _: "weights")
    monkeypatch.setattr(table3, "vectors", vectors)
    told, out = run("encoders=bge_m3,hashing,sentence_bert_l6,hunyuan")
    not_run = {"bge_m3": "a shard is broken", "sentence_bert_l6": "no manifest", "hunyuan": "no disk"}
    assert told["not_run"] == not_run
    assert told["accuracy"]["sample, all"].keys() == {"hashing", "at most", "chance", "shuffled ads"}
    text = (out / "table3.md").read_text()
    assert all(f"- {encoder}: {reason}\n" in text for encoder, reason in not_run.items())


def test_no_encoder_at_all_is_an_error(store):
    with pytest.raises(SystemExit, match=r"none of the encoders can run: the weights of .*; use encoders=lsa,hashing"):
        main(["data/world=tiny", "encoders=xlnet_chinese", f"store.root={store}"])


def test_every_encoder_of_the_paper_is_asked_for_unless_some_are_named():
    assert encoders()[: len(PAPER)] == tuple(PAPER)
    assert set(choice([]).encoders) >= {*PAPER, "lsa", "hashing"}
    assert not set(choice([]).encoders) & {"transformer", "vectors"}
    assert choice([]).overrides == ("data/world=paper",)
    asked = choice(["encoders=lsa,lsa", "data=amazon_beauty", "data.root=x", "seed=3", "category=first"])
    assert asked == (("lsa",), "first", "full", 3, ("data=amazon_beauty", "data.root=x"))


def test_one_ad_a_text_leaves_out_copies_from_queries_and_pool():
    ads = pl.DataFrame(
        {"second_category": ["a", "a", "a", "b", "b", None], "description": ["x", "x", "y", "z", "w", "v"]}
    )
    made = tasks(ads, category="second", seed=0)
    assert made["sample", "all"].queries.tolist() == [0, 1, 2, 3, 4]
    assert made["catalog", "all"].pool.tolist() == [0, 1, 2, 3, 4, 5]
    assert made["sample", "distinct"].queries.tolist() == [0, 2, 3, 4]
    assert made["catalog", "distinct"].pool.tolist() == [0, 2, 3, 4, 5]
    assert made["sample", "all"].category.tolist() == [0, 0, 0, 1, 1, -1]
    with pytest.raises(ValueError, match="second_category: no category has two ads"):
        tasks(ads.head(1), category="second", seed=0)


def test_the_interval_holds_the_mean_and_a_cut_beyond_the_pool_is_empty():
    category = np.array([0] * 6 + [1] * 6)
    task = Task(np.arange(12), np.arange(12), category)
    neighbors = np.stack([np.random.default_rng(row).permutation(np.delete(np.arange(12), row)) for row in range(12)])
    line = measured("lsa", task, neighbors, np.arange(12), seed=0)
    low, high = interval(line.draws)
    assert (low[:2] <= line.mean[:2]).all()
    assert (line.mean[:2] <= high[:2]).all()
    assert low[0] < high[0]
    assert np.isnan([*line.mean[2:], *low[2:], *high[2:]]).all()
    at_most, by_chance, control = references(task, neighbors, seed=0)
    assert at_most.mean[:2].tolist() == [1.0, 0.5]
    assert by_chance.mean[:2].tolist() == pytest.approx([5 / 11] * 2)
    assert control.name == "shuffled ads"


def test_with_each_text_once_the_interval_is_that_of_the_plain_bootstrap():
    values = np.random.default_rng(0).random((60, 2))
    ours = interval(resampled(values, np.arange(60), np.random.default_rng(1)))
    theirs = bootstrap_interval(values, samples=4000, confidence=0.95, generator=np.random.default_rng(2))
    np.testing.assert_allclose(ours, theirs, atol=0.015)


def test_copies_of_a_text_make_no_interval_narrower():
    values, texts = np.random.default_rng(0).random((40, 1)), np.arange(40)
    once = interval(resampled(values, texts, np.random.default_rng(1)))
    many = interval(resampled(np.repeat(values, 9, axis=0), np.repeat(texts, 9), np.random.default_rng(1)))
    np.testing.assert_allclose(many, once)
    uneven = resampled(np.array([[1.0], [1.0], [1.0], [0.0]]), np.array([7, 7, 7, 3]), np.random.default_rng(1))
    assert set(uneven[:, 0]) == {0.0, 0.75, 1.0}  # none, one and two of two draws are the text of three ads


def test_the_difference_from_the_best_is_that_of_the_paired_bootstrap():
    generator = np.random.default_rng(0)
    good, bad = generator.random((80, 4)) * 0.1 + 0.5, generator.random((80, 4)) * 0.1 + 0.5
    good, bad = good + np.linspace(0, 1, 80)[:, None], bad + np.linspace(0, 1, 80)[:, None] - 0.02
    rows = [
        Line(name, values.mean(0), resampled(values, np.arange(80), np.random.default_rng(5)))
        for name, values in (("bad", bad), ("good", good))
    ]
    lines = [*rows, Line("at most", np.ones(4))]
    mean, low, high = behind(lines[0], lines, 10)
    theirs = paired_bootstrap(bad, good, samples=4000, confidence=0.95, generator=np.random.default_rng(6))
    assert mean == pytest.approx(theirs.mean[1])
    assert (low, high) == pytest.approx((theirs.low[1], theirs.high[1]), abs=0.003)
    assert high < 0, "unpaired, the intervals of the two overlap"
    assert interval(rows[0].draws)[1, 1] > interval(rows[1].draws)[0, 1]
    assert behind(lines[1], lines, 10) is behind(lines[2], lines, 10) is None


def test_the_papers_numbers_stand_beside_ours_and_the_best_of_ours_is_bold():
    means = {"t5": [0.5, 0.5, 0.5, np.nan], "lsa": [0.6, 0.6, 0.4, np.nan]}
    ours = [Line(name, np.array(mean), np.tile(mean, (DRAWS, 1))) for name, mean in means.items()]
    found = grid([*ours, Line("at most", np.ones(4))], paper=True)
    difference = "-10.00 (-10.00 to -10.00)"
    assert found.rows[0] == (
        *("t5", *["50.00 (50.00–50.00)"] * 3, "–", difference, "67.10", "51.22", "33.90", "23.89"),
    )
    assert found.rows[1][5] == "–"
    assert found.rows[2] == ("at most", *["100.00"] * 4, "–", *["–"] * 4)
    assert found.strong == {(1, 1), (1, 2), (0, 3)}
