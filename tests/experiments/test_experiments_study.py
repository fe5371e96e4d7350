"""Rows and seeds over a store; what is left of a study, and what it may claim."""

import csv
import importlib
import json
import pkgutil
from functools import cache

import polars as pl
import pytest

import experiments
from experiments import content as module
from experiments import run, study
from experiments.content import _tokens, content_of, of_users
from experiments.reporting.tables import grid_of, write_tables
from experiments.result import Builds, Difference, read_result, write_result
from experiments.rows import Found
from experiments.run import run_study
from experiments.study import Claim, Row, Study, asked_of, configured, settings_of
from leadre.artifacts import Store
from leadre.command_line import check
from leadre.config import ConfigError

VERSION = 1
STUDY = Study(
    name="colors",
    title="Which color",
    question="Which color is best?",
    columns=("HR@8", "LTRR@8"),
    rows=(
        Row("red", ("embedding=lsa",), paper={"HR@8": 0.2}),
        Row("green", ("embedding=hashing",)),
        Row("blue", ("embedding=lsa_chinese",), paper={"HR@8": 0.4}),
        Row("gray", ("quantizer=tiny",), control=True),
    ),
    compared=("HR@8",),
    claims=(
        Claim("green beats red", "green", "red", "HR@8", ("gray", "red"), "folklore"),
        Claim("red beats green", "red", "green", "HR@8", ("gray", "red"), "folklore"),
        Claim("blue beats red", "blue", "red", "HR@8", ("gray", "red"), "folklore"),
        Claim("green beats gray", "green", "gray", "HR@8", None, "folklore"),
    ),
)
HITS = {"red": 20, "green": 120, "gray": 10}
USERS = 200


@cache
def _checked(*overrides: str) -> None:
    check(overrides)


@pytest.fixture(autouse=True)
def _what_rows_have_in_common_is_checked_once(monkeypatch):
    monkeypatch.setattr(study.command_line, "check", lambda overrides: _checked(*overrides))


def _tuned(config, *, out):
    (out / "budget.json").write_text(json.dumps({"steps": 10, "tokens": 3000, "tasks": {"main": 1}}))


def _scores(config, tuned, *, out):
    ranks = [1] * config["hits"] + [None] * (USERS - config["hits"])
    frame = {"user_id": [f"u{i:03}" for i in range(USERS)], "system": ["LEADRE"] * USERS, "rank": ranks}
    pl.DataFrame(frame, schema_overrides={"rank": pl.Int32}).write_parquet(out / "per_user.parquet")
    systems = {"LEADRE": {"HR@8": config["hits"] / USERS, "LTRR@8": 0.5}}
    (out / "scores.json").write_text(json.dumps({"systems": systems, "users": USERS}))


def _made(folder, hits, seed):
    store = Store(folder)
    tuned = store.make("sft", _tuned, {"seed": seed})
    return store.make("scores", _scores, {"hits": hits + seed, "seed": seed}, tuned)


@pytest.fixture
def found(tmp_path):
    """Three seeds; blue has no weights."""
    made = {name: {seed: _made(tmp_path, hits, seed) for seed in range(3)} for name, hits in HITS.items()}
    return Found({**made, "blue": {}}, {"blue": "seed 0: ValueError: no weights"}, [0, 1, 2])


@pytest.fixture
def content(found, tmp_path):
    return content_of(STUDY, found, store=tmp_path, command="python -m experiments.colors", seconds=1.0)


def test_a_row_tells_mean_half_range_change_and_the_papers_number(content):
    grid = grid_of(content)
    assert grid.head == ("", "HR@8", "LTRR@8", "steps", "M tokens")
    red, green, blue, gray = grid.rows
    assert red == ("red", "0.1050 ±0.0050 [0.2000]", "0.5000 ±0.0000", "10", "0.00")
    assert green[1] == "0.6050 ±0.0050 +476.2%"
    assert blue == ("blue", "– [0.4000]", "–", "–", "–")
    assert gray[0] == "gray (control)"


def test_every_number_names_the_result_behind_it_and_what_its_tuning_cost(content, tmp_path):
    for row in content.rows:
        for told in row.runs:
            path = tmp_path / told.path
            assert json.loads((path / "manifest.json").read_text())["key"] == told.key
            assert json.loads((path / "scores.json").read_text())["systems"]["LEADRE"]["HR@8"] == told.scores["HR@8"]
            assert [(stage.name, stage.steps) for stage in told.stages] == [("sft: main", 10)]
            assert (told.steps, told.tokens) == (10, 3000)
    assert content.builds == Builds(asked=18, built=12), "three tunings are shared by all rows"


def test_claims_are_judged_by_their_intervals_seeds_and_controls(content):
    verdicts = {claim.text: claim.verdict for claim in content.claims}
    assert verdicts == {
        "green beats red": "holds",
        "red beats green": "fails",
        "blue beats red": "undecided",
        "green beats gray": "undecided",
    }
    green, red, blue, gray = content.claims
    assert green.difference.mean == pytest.approx(0.5)
    assert green.difference.low < 0.5 < green.difference.high
    assert green.control_difference.mean == pytest.approx(-0.05)
    assert green.difference.p_holm >= green.difference.p
    assert green.our_change == pytest.approx(0.605 / 0.105 - 1)
    assert red.control_difference == green.control_difference
    assert (blue.why, blue.difference, blue.paper_change) == ("blue was not run", None, pytest.approx(1.0))
    assert gray.why == "its negative control was not run with three seeds"
    assert green.excess.mean == pytest.approx(0.55)


def test_with_fewer_than_three_seeds_nothing_holds(found, tmp_path):
    two = Found(
        {name: {0: runs[0], 1: runs[1]} for name, runs in found.scores.items() if runs} | {"blue": {}}, {}, [0, 1]
    )
    content = content_of(STUDY, two, store=tmp_path, command="", seconds=0.0)
    assert {claim.verdict for claim in content.claims} == {"undecided"}
    assert "Fewer than three seeds: no claim may rest on this table." in content.notes


def test_the_tables_show_the_hole_and_why(content, tmp_path):
    write_tables(tmp_path, content)
    page = (tmp_path / "table.md").read_text()
    assert "Not run: blue: seed 0: ValueError: no weights" in page
    assert "holds" in page
    with (tmp_path / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10
    assert [line["not_run"] for line in lines if line["row"] == "blue"] == ["seed 0: ValueError: no weights"]
    assert lines[0]["scores"] == content.rows[0].runs[0].key


def test_ranks_give_hits_and_gains_as_by_hand_and_other_scores_have_columns(tmp_path):
    result = _made(tmp_path, 0, 0)
    ranks = {
        "user_id": ["a", "b", "c", "d"],
        "system": ["LEADRE"] * 4,
        "rank": [1, 3, 9, None],
        "LTRR@8": [0.5, None, 0, 1],
    }
    pl.DataFrame(ranks, strict=False).write_parquet(result.path / "per_user.parquet")
    assert of_users([result, result], "LEADRE", "HR@8").tolist() == [[1, 1, 0, 0]] * 2
    assert of_users([result], "LEADRE", "NDCG@8")[0].tolist() == [1, 0.5, 0, 0]
    assert of_users([result], "LEADRE", "LTRR@8")[0].tolist() == pytest.approx([0.5, float("nan"), 0, 1], nan_ok=True)
    with pytest.raises(ValueError, match=r"Dice@8 is no score of users in .*: it has user_id, system, rank, LTRR@8"):
        of_users([result], "LEADRE", "Dice@8")


def test_seeds_that_score_other_users_are_not_compared(tmp_path):
    results = [_made(tmp_path, 0, seed) for seed in (0, 1)]
    frame = pl.read_parquet(results[1].path / "per_user.parquet")[1:]
    frame.write_parquet(results[1].path / "per_user.parquet")
    with pytest.raises(ValueError, match="do not score the same users"):
        of_users(results, "LEADRE", "HR@8")


def _run(tmp_path, monkeypatch, make, rows=STUDY.rows, typed=()):
    def scored(overrides, seed):
        return make(next(text.partition("=")[2] for text in reversed(overrides) if not text.startswith("store")), seed)

    given = STUDY._replace(rows=rows, claims=(), run=scored)
    monkeypatch.setattr(run, "write_page", lambda folder, store: folder / "report.html")
    monkeypatch.setattr(run, "write_index", lambda studies: studies / "index.html")
    run_study(given, [*typed, f"store.root={tmp_path / 'store'}"])


def test_a_row_that_fails_half_way_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def make(option, seed):
        if (option, seed) == ("lsa_chinese", 4):
            raise RuntimeError("the disk is full")
        return _made(tmp_path / "store", 5, seed)

    with pytest.raises(SystemExit, match="1 of 4 rows have holes: blue"):
        _run(tmp_path, monkeypatch, make, typed=["seeds=3,4,5"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["not_run"] == ["blue"]
    (folder,) = (tmp_path / "store" / "studies" / "colors").iterdir()
    assert last["folder"] == str(folder)
    assert {path.name for path in folder.iterdir()} == {"result.json", "table.md", "table.csv", "figure.png"}
    content = read_result(folder)
    assert content.command.startswith("python -m experiments.colors seeds=3,4,5 store.root=")
    runs = {row.name: [told.seed for told in row.runs] for row in content.rows}
    assert runs == {"red": [3, 4, 5], "green": [3, 4, 5], "blue": [3], "gray": [3, 4, 5]}
    assert content.rows[2].not_run == "seed 4: RuntimeError: the disk is full"


def test_a_study_of_which_no_row_can_run_says_why(tmp_path, monkeypatch):
    def make(option, seed):
        raise ValueError("no weights here")

    with pytest.raises(SystemExit, match="No row could be run:\nseed 0: ValueError: no weights here"):
        _run(tmp_path, monkeypatch, make, rows=STUDY.rows[:1])


def test_a_wrong_override_stops_a_study_before_anything_runs():
    with pytest.raises(SystemExit, match=r"quantizer\.levels: Input should be greater than or equal to 1 \(got 0\)"):
        run_study(STUDY, ["quantizer.levels=0"])


def test_a_row_that_does_not_compose_is_named():
    broken = STUDY._replace(rows=(Row("red", ()), Row("odd", ("sft=nope",))))
    with pytest.raises(SystemExit, match=r"row 'odd' of colors does not compose \(sft=nope\): (.|\n)*no such option"):
        run_study(broken, [])


def test_a_rows_own_settings_win_and_the_studys_groups_that_it_replaces_are_left_out():
    random = ("quantizer=random", "quantizer.levels={levels}", "quantizer.codebook_size={codebook_size}")
    given = STUDY._replace(name="codes", rows=(Row("rqvae", ()), Row("random", random, control=True)))
    typed = ["quantizer=medium", "quantizer.steps=700", "lm.seed=3"]
    assert settings_of(given, typed) == {
        "rqvae": typed,
        "random": ["lm.seed=3", "quantizer=random", "quantizer.levels=4", "quantizer.codebook_size=256"],
    }


def test_the_studys_quantizer_is_composed_only_where_a_row_names_its_sizes(monkeypatch):
    composed = []
    compose = study._composed
    monkeypatch.setattr(study, "_composed", lambda overrides: composed.append(overrides) or compose(overrides))
    settings_of(STUDY._replace(rows=(Row("all", ()), Row("one", ("sft.stages=[{{main: 2}}]",)))), [])
    assert composed == []
    settings_of(STUDY._replace(rows=(Row("all", ()), Row("flat", ("quantizer.levels={levels}",)))), [])
    assert composed == [[]]


def test_what_the_rows_differ_in_may_not_be_set():
    with pytest.raises(SystemExit, match="embedding=hashing: this is what the rows of colors differ in"):
        run_study(STUDY, ["embedding=hashing"])
    varied = STUDY._replace(rows=(Row("whole", ()), Row("half", ("prompts.max_tokens=128",))))
    with pytest.raises(ConfigError, match=r"prompts.max_tokens=512: this is what"):
        settings_of(varied, ["prompts.max_tokens=512"])


def test_a_setting_inside_of_what_rows_choose_reaches_every_row_that_has_it():
    curricula = STUDY._replace(rows=(Row("all", ("sft=ex_im_main",)), Row("one", ("sft.stages=[{{main: 2}}]",))))
    typed = ["sft/tuning=paper", "prompts=paper", "sft.tuning.batch_size=16"]
    settings = settings_of(curricula, typed)
    assert all(set(typed) <= set(chosen) for chosen in settings.values())
    tunings = [configured(chosen, 0).sft.tuning for chosen in settings.values()]
    assert [(tuning.learning_rate, tuning.batch_size) for tuning in tunings] == [(6e-5, 16)] * 2
    encoders = STUDY._replace(rows=(Row("lsa", ("embedding=lsa",)), Row("words", ("embedding=hashing",))))
    settings = settings_of(encoders, ["embedding.seed=3"])
    assert ["embedding.seed=3" in chosen for chosen in settings.values()] == [True, False]


@pytest.mark.parametrize("typed", ["seeds=", "seeds=a", "seeds=[0,1]", "seeds=0,0,1", "seed=3"])
def test_wrong_seeds_are_told(typed):
    with pytest.raises(SystemExit, match="seed"):
        run_study(STUDY, [typed])


def test_seeds_are_taken_out_of_a_command_line():
    assert asked_of(["seeds=4,5", "lm=tiny"]) == ([4, 5], 1, ["lm=tiny"])
    assert asked_of([]) == ([0, 1, 2], 1, [])


def test_jobs_share_the_cores_unless_told_how_many_threads_each_has(monkeypatch):
    monkeypatch.setattr(study, "cores", lambda: 8)
    assert asked_of(["jobs=3", "lm=tiny"]) == ([0, 1, 2], 3, ["lm=tiny", "compute.threads=2", "compute.progress=false"])
    assert asked_of(["jobs=9", "compute.progress=true"]).overrides == ["compute.progress=true", "compute.threads=1"]
    assert asked_of(["jobs=2", "compute.threads=1", "compute.progress=true"]).overrides[0] == "compute.threads=1"


@pytest.mark.parametrize("typed", ["jobs=0", "jobs=two", "jobs=-1", "jobs="])
def test_wrong_jobs_are_told(typed):
    with pytest.raises(SystemExit, match=f"jobs is '{typed[5:]}', but must be a whole number of 1 or more"):
        run_study(STUDY, [typed])


def test_help_tells_the_question_the_rows_and_the_claims(capsys):
    run_study(STUDY, ["--help"])
    told = capsys.readouterr().out
    assert "Which color is best?" in told
    assert "gray (control): quantizer=tiny" in told
    assert "green beats red (folklore)" in told


MODULES = [importlib.import_module(f"experiments.{name}") for _, name, _ in pkgutil.iter_modules(experiments.__path__)]
STUDIES = {
    value.name: (module, value) for module in MODULES for value in vars(module).values() if isinstance(value, Study)
}


def test_every_study_is_found():
    assert len(STUDIES) >= 11


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_every_study_is_a_right_configuration_and_every_claim_names_rows_of_it(name):
    module, given = STUDIES[name]
    assert module.__name__ == f"experiments.{name}"
    names = [row.name for row in given.rows]
    assert len(set(names)) == len(names)
    assert any(row.control for row in given.rows)
    settings_of(given, [])
    assert all(set(row.paper) <= set(given.columns) for row in given.rows)
    for claim in given.claims:
        assert {claim.better, claim.worse, *(claim.control or ())} <= set(names)


def test_the_five_rows_of_table_two_share_their_stages():
    """38 results without sharing: world, embeddings, codes, catalog, pairs, base, and the tunings of each row."""
    _, table = STUDIES["table2_task_order"]
    stages = [configured(row.overrides, 0).sft.stages for row in table.rows[:5]]
    curricula = [tuple(tuple(sorted(tasks.items())) for tasks in of_row) for of_row in stages]
    apart = sum(6 + len(stages) for stages in curricula)
    shared = 6 + len({stages[:depth] for stages in curricula for depth in range(1, len(stages) + 1)})
    assert (apart, shared) == (38, 13)


def test_a_score_or_a_system_that_the_data_does_not_have_leaves_a_hole_and_not_a_failed_study(found, tmp_path):
    rows = (*STUDY.rows, Row("oracle", ("embedding=lsa",), system="oracle"))
    claims = (*STUDY.claims, Claim("green is worth more", "green", "red", "Value@8", ("gray", "red"), "folklore"))
    given = STUDY._replace(rows=rows, claims=claims, compared=("HR@8", "Value@8"))
    scores = {**found.scores, "oracle": found.scores["red"]}
    content = content_of(given, found._replace(scores=scores), store=tmp_path, command="", seconds=0.0)
    assert content.rows[-1].not_run == "these runs have no oracle"
    assert content.rows[-1].runs == ()
    assert list(content.rows[0].interval) == ["HR@8"]
    worth = content.claims[-1]
    assert (worth.verdict, worth.difference) == ("undecided", None)
    assert "Value@8 is no score of users" in worth.why
    assert content.claims[0].difference.p_holm > 4 * content.claims[0].difference.p, "five claims"


def test_what_is_written_is_read_again(content, tmp_path):
    write_result(tmp_path, content)
    assert read_result(tmp_path) == content
    assert not list(tmp_path.glob("*.part"))
    told = json.loads((tmp_path / "result.json").read_text())
    assert list(told) == list(type(content).model_fields)
    assert told["rows"][0]["runs"][0]["stages"][0]["name"] == "sft: main"
    assert told["claims"][0]["difference"]["users"] == USERS


def test_no_number_is_written_as_none(content, tmp_path):
    wrong = Difference(mean=float("nan"), low=0, high=0)
    claims = (content.claims[0].model_copy(update={"difference": wrong}),)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(tmp_path, content.model_copy(update={"claims": claims}))
    assert not (tmp_path / "result.json").exists()


def test_a_score_of_a_result_is_read_once_however_many_claims_ask_for_it(found, tmp_path, monkeypatch):
    seen = []
    read = module.column
    monkeypatch.setattr(module, "column", lambda *place: seen.append(place) or read(*place))
    content_of(STUDY, found, store=tmp_path, command="", seconds=0.0)
    assert len(seen) == len(set(seen)) == 9, "three rows with three seeds"


def test_rows_of_other_users_are_not_compared(found, tmp_path):
    path = found.scores["green"][0].path / "per_user.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(user_id="x" + pl.col("user_id")).write_parquet(path)
    content = content_of(STUDY, found, store=tmp_path, command="", seconds=0.0)
    assert content.claims[0].why == "green and red do not score the same users"


def test_a_change_is_told_over_the_seeds_that_both_rows_have(found, tmp_path):
    half = {**found.scores, "green": {2: found.scores["green"][2]}}
    content = content_of(STUDY, found._replace(scores=half), store=tmp_path, command="", seconds=0.0)
    assert content.rows[1].change["HR@8"] == pytest.approx(122 / 22 - 1)


def test_rows_that_are_said_to_read_as_much_must_do_so(found, tmp_path):
    claims = (STUDY.claims[0]._replace(same_tokens=True),)
    content = content_of(STUDY._replace(claims=claims), found, store=tmp_path, command="", seconds=0.0)
    assert content.claims[0].verdict == "holds"
    red, green, *_ = content.rows
    less, more = (
        row.model_copy(update={"runs": (row.runs[0].model_copy(update={"tokens": tokens}),)})
        for row, tokens in ((green, 1000), (red, 1100))
    )
    assert _tokens(less, more) == "the rows do not read as much as one another: 1,000 and 1,100 tokens"
