import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments import reproduction
from experiments.record import file_name, kept, overrides_of, read_record, without_paths, without_values, write_record
from experiments.reproduction import collect, main, read_records, render, results_of
from experiments.result import StudyResult

DOCS = Path(__file__).parents[2] / "docs"


def _run(seed, score):
    return {
        "seed": seed,
        "key": f"{seed:016x}",
        "path": f"scores/{seed:016x}",
        "scores": {"HR@8": score, "Value@8": None},
        "steps": 1096,
        "tokens": 3456608,
        "seconds": 512.0,
        "stages": [{"stage": "sft", "name": "sft: main", "key": "ab", "steps": 1, "tokens": 2, "seconds": 3.0}],
    }


RESULT = {
    "study": "table1_prompt_components",
    "title": "Table 1: the components of the prompt",
    "question": "What does each part of the prompt add?",
    "command": "python -m experiments.table1_prompt_components data.root=/home/me/data",
    "date": "2026-11-21T20:15:00+00:00",
    "git": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "seconds": 150.0,
    "seconds_of_stages": 5490.5,
    "store": "/home/me/store",
    "seeds": [0, 1, 2],
    "users": 3236,
    "data": {"name": "synthetic small, seed 5", "counts": {"users": 4000, "ads": 1200}},
    "columns": ["HR@8", "Value@8"],
    "compared": ["HR@8"],
    "confidence": 0.95,
    "rows": [
        {
            "name": "LEADRE",
            "control": False,
            "system": "LEADRE",
            "overrides": [],
            "paper": {"HR@8": 0.2021},
            "not_run": None,
            "mean": {"HR@8": 0.3, "Value@8": 21.5},
            "interval": {"HR@8": [0.29, 0.31]},
            "change": {},
            "runs": [_run(0, 0.3), _run(1, 0.3), _run(2, 0.3)],
        },
        {
            "name": "w.o. content",
            "control": False,
            "system": "LEADRE",
            "overrides": ["prompts=without_content"],
            "paper": {"HR@8": 0.1773},
            "not_run": None,
            "mean": {"HR@8": 0.27, "Value@8": None},
            "interval": {"HR@8": [0.26, 0.28]},
            "change": {"HR@8": -0.1, "Value@8": None},
            "runs": [_run(2, 0.27), _run(3, 0.27), _run(4, 0.27)],
        },
        {
            "name": "another user's content",
            "control": True,
            "system": "LEADRE",
            "overrides": [],
            "paper": {},
            "not_run": "the weights of a|b <b>x</b> are not in /home/me/.cache/hub/x",
            "mean": {},
            "interval": {},
            "change": {},
            "runs": [],
        },
    ],
    "claims": [
        {
            "text": "content helps",
            "source": "LEADRE 5.2.1, Table 1",
            "better": "LEADRE",
            "worse": "w.o. content",
            "on": "HR@8",
            "control": ["another user's content", "w.o. content"],
            "verdict": "undecided",
            "why": "its control was not run",
            "difference": {"mean": 0.03, "low": 0.02, "high": 0.04, "p": 0.0005, "p_holm": 0.0005},
            "control_difference": None,
            "excess": {
                "mean": 0.02,
                "low": 0.01,
                "high": 0.03,
                "p": 0.001,
                "users": 3236,
                "of_users": 0.1,
                "of_seeds": 0,
            },
            "users_needed": 12345,
            "paper_change": 0.1399,
            "our_change": 0.1111,
        }
    ],
    "builds": {"asked": 48, "built": 15},
    "notes": ["Not run: another user's content: the weights", "users are the same in all rows"],
}


@pytest.fixture
def result():
    return copy.deepcopy(RESULT)


@pytest.fixture
def leave(tmp_path):
    """Leave a result as a study does."""

    def leave(result, time="2026-11-21_20-15-00", study=None):
        folder = tmp_path / "store" / "studies" / (study or result["study"]) / time
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
        return folder / "result.json"

    return leave


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "DOCS", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    return tmp_path / "docs"


def test_the_committed_page_is_what_the_committed_results_give():
    page = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    assert render(read_records(DOCS / "results"), DOCS / "results") == page, "run `python -m experiments.reproduction`"


def test_the_committed_results_are_small_and_name_no_place_of_a_machine():
    for path in (DOCS / "results").glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert without_paths(found) == found, path
        assert "per_user" not in path.read_text(encoding="utf-8")
        assert path.stat().st_size < 200_000, path


def test_what_is_kept_is_written_as_it_was_read(tmp_path):
    for path in (DOCS / "results").glob("*.json"):
        write_record(tmp_path / path.name, read_record(path))
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_part_that_is_written_by_hand_belongs_to_a_study_there_is():
    words = (Path(reproduction.__file__).parent / "reproduction.md.jinja").read_text(encoding="utf-8")
    named = re.findall(r'^  "([a-z0-9_]+)": \(', words, flags=re.MULTILINE)
    assert len(named) >= 10
    for name in named:
        assert (Path(reproduction.__file__).parent / f"{name}.py").is_file(), name


def test_a_study_in_the_store_comes_to_the_page(docs, leave, result):
    leave(result)
    main([])
    page = (docs / "reproduction.md").read_text(encoding="utf-8")
    row = (
        "| content helps (LEADRE 5.2.1, Table 1): LEADRE over w.o. content | HR@8 | +14.0 % | +11.1 % "
        "| +0.0300 (+0.0200 to +0.0400) | – | +0.0200 (+0.0100 to +0.0300) | <.001 | **undecided** | 12,345 |"
    )
    assert row in page
    assert "Results recorded: 1. Claims: 1 undecided." in page
    ran = (
        "2026-11-21; commit `0123456789ab`; seeds 0, 1, 2; 3,236 test users; 15 distinct results where rows that share "
        "nothing would have 48; stages: 92 min of building, this call 3 min."
    )
    assert ran in page
    assert "| LEADRE | 0.3000 [0.2900, 0.3100] | 21.50 | 1,096 | 3,456,608 |" in page
    assert "| w.o. content | 0.2700 [0.2600, 0.2800] (−10.0 %) | – | 1,096 | 3,456,608 |" in page
    assert "| *paper* | 0.1773 (−12.3 %) | – |  |  |" in page
    assert "- **undecided**, content helps: its control was not run" in page
    assert "- w.o. content (`prompts=without_content`): seed 2 `0000000000000002`, seed 3" in page
    assert "| another user's content (control) | – | – | not run |  |" in page
    assert "Not recorded yet: `python -m experiments.table2_task_order`" in page
    assert page.count("Not run: another user's content:") == 1
    assert "### synthetic small, seed 5 (4,000 users, 1,200 ads)" in page


def test_what_is_kept_holds_no_path_of_the_machine_and_no_more_than_the_page_needs(docs, leave, result):
    leave(result | {"per_user": [1, 2, 3]})
    main([])
    kept = (docs / "results" / "table1_prompt_components.synthetic_small_seed_5_4000_users_1200_ads.json").read_text()
    assert "/home/me" not in kept
    assert "per_user" not in kept
    assert json.loads(kept)["command"] == "python -m experiments.table1_prompt_components data.root=PATH"
    assert "are not in PATH" in (docs / "reproduction.md").read_text()


def test_the_picture_of_what_is_kept_stands_on_the_page(docs, leave, result):
    figure = leave(result).with_name("figure.png")
    Image.linear_gradient("L").resize((600, 400)).save(figure)
    main([])
    kept = docs / "results" / "table1_prompt_components.synthetic_small_seed_5_4000_users_1200_ads.png"
    with Image.open(kept) as picture:
        assert (picture.size, picture.mode) == ((600, 400), "P")
    shown = f"![{result['title']}](results/{kept.name})"
    assert shown in (docs / "reproduction.md").read_text(encoding="utf-8")
    figure.unlink()  # a run that left none replaces it
    main([])
    assert not kept.exists()
    assert shown not in (docs / "reproduction.md").read_text(encoding="utf-8")


def test_texts_of_results_are_no_markup(docs, leave, result):
    leave(result)
    main([])
    page = (docs / "reproduction.md").read_text(encoding="utf-8")
    assert "\\<b>x\\</b>" in page
    assert not re.search(r"(?<!\\)<b>", page)


def test_the_page_does_not_depend_on_what_the_store_holds_now(docs, leave, result):
    path = leave(result)
    main([])
    page = (docs / "reproduction.md").read_bytes()
    path.unlink()
    main([])
    assert (docs / "reproduction.md").read_bytes() == page


def test_each_data_set_has_a_record_of_its_own_and_the_newest_run_counts(docs, leave, result):
    newer = result | {"date": "2026-11-22T00:00:00+01:00", "title": "newer"}
    leave(newer, "2026-11-22_00-00-00")
    leave(result, "2026-11-23_00-00-00")
    leave(result | {"data": {"name": "completejourney", "counts": {}}}, "2026-11-21_00-00-00")
    smaller = result["data"] | {"counts": {"users": 200, "ads": 192}}  # a world of the same name
    leave(result | {"data": smaller, "title": "smaller"}, "2026-11-24_00-00-00")
    studies, results = Path("store/studies"), docs / "results"
    taken, faults = collect(studies, results)
    assert [path.name for path in sorted(taken)] == [
        "table1_prompt_components.completejourney.json",
        "table1_prompt_components.synthetic_small_seed_5_200_users_192_ads.json",
        "table1_prompt_components.synthetic_small_seed_5_4000_users_1200_ads.json",
    ]
    assert not faults
    assert [record.title for record in read_records(results)] == [result["title"], "smaller", "newer"]


def _ruined(result):
    """The same study, newer, in which a row failed."""
    rows = [row | {"runs": [], "mean": {}, "interval": {}, "not_run": "killed"} for row in result["rows"][1:]]
    return result | {"rows": [result["rows"][0], *rows], "date": "2026-12-01T00:00:00+00:00", "title": "ruined"}


def _trial(result):
    """The same study, newer, with one seed."""
    rows = [row | {"runs": row["runs"][:1]} for row in result["rows"]]
    return result | {"rows": rows, "seeds": [0], "date": "2026-12-01T00:00:00+00:00", "title": "a trial"}


@pytest.mark.parametrize("worse", [_trial, _ruined])
def test_a_trial_or_a_run_whose_rows_failed_does_not_replace_a_whole_one(docs, leave, result, worse, caplog):
    leave(result)
    leave(worse(result), "2026-12-01_00-00-00")
    main([])
    assert [record.title for record in read_records(docs / "results")] == [result["title"]]
    shutil.rmtree("store/studies/table1_prompt_components/2026-11-21_20-15-00")
    main([])
    assert [record.title for record in read_records(docs / "results")] == [result["title"]]
    assert "stays: 2 of its rows have three seeds, of the newest run " in caplog.text


def test_a_varied_run_has_a_record_of_its_own(docs, leave, result):
    leave(result)
    newer = {"date": "2026-12-01T00:00:00+00:00", "title": "varied"}
    command = "python -m experiments.table1_prompt_components"
    leave(result | newer | {"command": f"{command} prompts=without_summary seeds=0,1,2"}, "2026-12-01_00-00-00")
    main([])
    assert [record.title for record in read_records(docs / "results")] == [result["title"], "varied"]


def _named(result, arguments):
    return file_name(StudyResult.model_validate(result | {"command": f"python -m experiments.x {arguments}".strip()}))


def test_the_name_tells_what_is_varied_and_nothing_of_data_machine_and_seeds(result):
    plain = _named(result, "")
    assert _named(result, "jobs=2") == plain
    for same in (
        "data=synthetic data/world=paper data.root=/home/me/a b data.world.seed=1",
        "compute=gpu compute.threads=1 store.root=x logger=wandb logger.project=y seeds=0,1",
        "text=name category=first",
    ):
        assert _named(result, same) == plain
    slug = plain.removesuffix(".json")
    assert _named(result, "prompts=without_summary") == f"{slug}.prompts_without_summary.json"
    assert _named(result, "lm=small +sft.x=-1 seeds=0") == _named(result, "+sft.x=-1 lm=small")
    names = [_named(result, text) for text in ("", "sft.rate=1", "sft.rate=.1", "sft.stages=[ex, main]", "~logger")]
    names += [_named(result, f"sft.stages=[{','.join(['main'] * times)}]") for times in (20, 21)]
    assert len(set(names)) == 6  # a logger that is left out changes no result
    assert max(map(len, names)) < len(plain) + 60


def test_changed_code_is_warned_of(docs, leave, result, caplog):
    leave(result | {"dirty": True})
    main([])
    assert "was made from changed code: commit 0123456789abcdef" in caplog.text
    assert "commit `0123456789ab` with changes on top" in (docs / "reproduction.md").read_text()


def test_an_old_result_tells_no_time_of_its_stages(docs, leave, result):
    del result["seconds_of_stages"], result["claims"][0]["excess"]
    leave(result)
    main([])
    assert "would have 48; this call 3 min." in (docs / "reproduction.md").read_text()


def test_a_row_without_anything_random_has_one_key(docs, leave, result):
    result["rows"][0]["runs"] = [_run(0, 0.3) | {"seed": seed} for seed in (0, 1, 2)]
    leave(result)
    main([])
    told = "- LEADRE: nothing is random, the same with seeds 0, 1, 2: `0000000000000000`\n"
    assert told in (docs / "reproduction.md").read_text()


def test_rows_that_show_one_result_share_a_line_of_keys(result):
    whole, shorter, empty = result["rows"]
    for row in (shorter, empty):
        row |= {"overrides": whole["overrides"], "runs": whole["runs"]}
    (line,) = results_of(StudyResult.model_validate(result))
    assert line.startswith("all rows")
    empty["overrides"] = ["lm=local"]
    shared, own = results_of(StudyResult.model_validate(result))
    assert shared.startswith("LEADRE; w.o. content")
    assert own.startswith("another user's content (`lm=local`): ")
    shorter["runs"] = []
    assert len(results_of(StudyResult.model_validate(result))) == 2, "a row that was not run has no line"


def test_named_studies_alone_are_taken_over(docs, leave, result):
    leave(result)
    leave(result | {"study": "own_study"})
    main(["own_study"])
    assert [record.study for record in read_records(docs / "results")] == ["own_study"]
    page = (docs / "reproduction.md").read_text(encoding="utf-8")
    assert '<a id="own_study"></a>\n\n## Table 1: the components of the prompt' in page, (
        "a study of our own has a part too"
    )


BROKEN = {
    "{": r"is broken, it is no JSON \(Expecting property name",
    '{"a": 1}': r"is no result of a study \(study: field required; title: field required",
    "[]": r"is no result of a study \(input should be a valid dictionary",
    json.dumps(RESULT | {"claims": [RESULT["claims"][0] | {"verdict": "proved"}]}): (
        r"claims\[0\]\.verdict: input should be 'holds', 'fails' or 'undecided'"
    ),
    json.dumps(RESULT | {"date": "2026-11-21T20:15:00"}): "date: input should have timezone info",
    json.dumps(RESULT | {"study": "../x"}): "study: string should match pattern",
    json.dumps(
        RESULT | {"study": "table2_task_order"}
    ): "is a result of study 'table2_task_order': it lies in the folder",
    json.dumps(RESULT | {"rows": []}): "rows: tuple should have at least 1 item",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_or_foreign_result_is_named_and_the_others_are_taken_over(docs, leave, result, text, message):
    leave(text, study="table1_prompt_components")
    leave(result | {"study": "own_study"})
    with pytest.raises(SystemExit, match=rf"^store/studies/table1_prompt_components/.*/result\.json .*{message}"):
        main([])
    assert "## Table 1" in (docs / "reproduction.md").read_text(encoding="utf-8")
    assert [record.study for record in read_records(docs / "results")] == ["own_study"]


def test_bytes_that_are_no_text_are_named(leave):
    path = leave("x", study="x")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        ValueError, match=r"result\.json is broken, it is no JSON \(.*: run the study anew, or remove it"
    ):
        read_record(path)


def test_a_broken_record_is_named_and_the_page_stays_as_it_was(docs, result):
    (docs / "reproduction.md").write_text("before")
    (docs / "results" / "own.json").write_text(json.dumps(result))
    (docs / "results" / "x.json").write_text("{")
    told = r"own\.json holds table1_prompt_components\.synthetic_.*: rename it, or delete it\n.*x\.json is broken"
    with pytest.raises(SystemExit, match=told):
        main([])
    assert (docs / "reproduction.md").read_text() == "before"


def test_a_broken_record_is_replaced_by_a_run_from_the_store(docs, leave, result):
    (docs / "results" / "table1_prompt_components.synthetic_small_seed_5_4000_users_1200_ads.json").write_text("{")
    leave(result)
    main([])
    assert len(read_records(docs / "results")) == 1


def test_wrong_arguments_are_told(docs, leave, result):
    leave(result)
    for argument, message in (
        ("seeds=0", "'seeds=0' is neither store.root=PATH nor the name of a study"),
        ("store.root=nowhere", "store.root=nowhere: there are no studies in it"),
        ("table9", "store/studies has no study 'table9': run `python -m experiments.table9` first"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([argument])
    assert not (docs / "reproduction.md").exists()


def test_help_tells_how_it_is_called(capsys):
    main(["--help"])
    assert "python -m experiments.reproduction store.root=PATH" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["HR/NDCG", "w/o", "scores/0f3a", "https://arxiv.org/abs/2411.13789", "</b>", "a / b", "1/2/3"]
)
def test_what_only_looks_like_a_path_stays(text):
    assert without_paths(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.root=/data/x y", "data.root=PATH y"),
        ("'/a b/c'", "'PATH'"),
        ("'data.root=/a b/c' is", "'data.root=PATH' is"),
        ("see `~/x y`: gone", "see `PATH`: gone"),
        ('open("/home/o\'brien/my x")', 'open("PATH")'),
        ("/data", "PATH"),
        ("error at:/home/me/x", "error at:PATH"),
        ("file:///home/me/x", "PATH"),
        ("../../me/store", "PATH"),
        ("store/../../me gone", "PATH gone"),
        ("~/data", "PATH"),
        ("~me/data", "PATH"),
        ("C:\\Users\\me", "PATH"),
        ("/a/b(c)/d, /e.", "PATH, PATH."),
        ("https://a.b/c?x=/home/me", "https://a.b/c?x=PATH"),
        ("no /root/.cache/hub/models--x: fetch it", "no PATH: fetch it"),
        ("~/data/x", "PATH"),
        ("[/tmp/x/y.json, /tmp/z/]", "[PATH, PATH]"),
    ],
)
def test_paths_of_the_machine_go(text, expected):
    assert without_paths([{"x": text}]) == [{"x": expected}]


def test_the_name_of_a_record_is_that_of_its_study_and_data(result, leave):
    assert (
        file_name(read_record(leave(result)))
        == "table1_prompt_components.synthetic_small_seed_5_4000_users_1200_ads.json"
    )


NAMES = st.text(alphabet="abz09_-.()äß", min_size=1, max_size=6).map(lambda text: f"me{text}q")
SPACED = st.lists(NAMES, min_size=1, max_size=3).map(" ".join)
BEGINNINGS = st.sampled_from(["/", "//", "~/", "../", "../../", "file:///", "/../", "C:\\", "~root/", "x/../"])


def _paths(names):
    return st.tuples(BEGINNINGS, st.lists(names, min_size=1, max_size=4)).map(lambda both: both[0] + "/".join(both[1]))


@given(_paths(NAMES), st.sampled_from(["", " ", ":", "=", "(", "[", ",", "at ", "error at:", "x\n"]), st.sampled_from(
    ["", " ", "\n", ": gone", ", ", ") ", "]", " is not there"]))  # fmt: skip
def test_no_path_survives_in_a_text(path, before, after):
    assert "me" not in without_paths(f"{before}{path}{after}".replace("not there", "not"))


@given(_paths(SPACED), st.sampled_from("'\"`"), st.sampled_from(["", "data.root=", "x:"]))
def test_no_path_with_spaces_survives_in_quotes(path, quote, before):
    text = without_paths(f"[Errno 2] no {quote}{before}{path}{quote}, stop")
    assert "me" not in text
    assert text.endswith(f"{quote}, stop")


@given(
    SPACED | _paths(SPACED),
    st.sampled_from(
        ["data.root", "store.root", "lm.model", "previous_catalog", "decoding.filters", "+embedding.model"]
    ),
    st.sampled_from(["", "'", '"']),
)
def test_no_private_value_survives_in_a_command(value, key, quote):
    command = f"python -m experiments.x lm=local {key}={quote}{value}{quote} seeds=0,1"
    kept = without_values(without_paths(command))
    assert kept == f"python -m experiments.x lm=local {key}=PATH seeds=0,1"
    assert overrides_of(kept)[1] == ["lm=local", f"{key}=PATH", "seeds=0,1"]


@given(SPACED)
def test_no_private_value_survives_in_the_overrides_of_a_row(value):
    row = RESULT["rows"][0] | {"overrides": [f"lm.model={value}", "lm=local"]}
    record = kept(StudyResult.model_validate(RESULT | {"rows": [row]}))
    assert record.rows[0].overrides == ("lm.model=PATH", "lm=local")


def test_a_name_that_tells_the_size_of_its_data_tells_it_once(result):
    sized = result["data"] | {"name": "synthetic, 4,000 users and 1,200 ads, world seed 5"}
    record = StudyResult.model_validate(result | {"data": sized})
    assert record.data.told == sized["name"]
    assert file_name(record) == "table1_prompt_components.synthetic_4000_users_and_1200_ads_world_seed_5.json"
