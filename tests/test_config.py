import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from leadre.command_line import check
from leadre.config import CONF, ConfigError, RunConfig, load, load_generate

ROOT = Path(__file__).parent.parent
PARTS = {CONF / "baselines" / "learned"}
"""Folders whose files are put into an option, one or several, under a name."""
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.rglob("*.yaml") if path.parent not in {CONF, *PARTS}
)
NEEDS = {
    "prompts=paper": ["sft/tuning=paper"],
    "sft=ex_im_next_n": ["prompts.next_n=4"],
    "data=amazon_beauty": ["alignment=none"],
    "data=completejourney": ["alignment=none"],
}
"""What some options must stand beside."""


def _load(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(compose("run", list(overrides)))


@cache
def _passes(name: str, *typed: str) -> None:
    """Check a command line once, however often it is written down."""
    check(typed, name=name)


def _faults(*arguments: str, name: str = "run") -> list[str]:
    with pytest.raises(ConfigError) as told:
        check(arguments, name=name)
    return [line.strip() for line in str(told.value).splitlines()[1:]]


def test_there_are_options_to_test():
    assert len(OPTIONS) >= 30


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_on_disk_composes_to_a_right_configuration(option):
    _passes("run", option, *NEEDS.get(option, []))


def test_all_faults_are_told_at_once_each_by_its_key():
    tasks = "'explicit', 'implicit', 'main', 'next_n' or 'next_n_control'"
    curricula = sorted(path.stem for path in (CONF / "sft").glob("*.yaml"))
    assert _faults(
        "quantizer.levels=0",
        "quantizer.levles=3",
        "sft=nope",
        "decoding.beam_width=abc",
        "data.world.days=3.5",
        "quantiser=rqvae",
        "sft.stages=[{exlicit: 1}]",
    ) == [
        f"sft: no such option (got nope); choose from {', '.join(curricula)}",
        "data.world.days: Input should be a valid integer (got 3.5)",
        "quantizer.levels: Input should be greater than or equal to 1 (got 0)",
        "quantizer.levles: unknown key (got 3)",
        f"sft.stages.0.exlicit: Input should be {tasks} (got exlicit)",
        "decoding.beam_width: Input should be a valid integer (got abc)",
        "quantiser: unknown key (got rqvae)",
    ]


def test_a_curriculum_names_a_stage_and_a_stage_may_stand_twice():
    assert _faults("sft.stages=[]") == [
        "sft.stages: Tuple should have at least 1 item after validation, not 0 (got [])"
    ]
    assert _faults("sft.stages=[{}]")[0].startswith("sft.stages.0: Dictionary should have at least 1 item")
    check(["sft.stages=[{main: 1},{main: 1}]"])


@pytest.mark.parametrize("order", ["ex_im_main", "ex_main_im", "im_ex_main", "im_main_ex", "main_ex_im", "main_im_ex"])
def test_the_six_orders_have_the_same_tasks_and_epochs_and_so_equal_budgets(order):
    tasks = [task for stage in _load(f"sft={order}").sft.stages for task in stage.items()]
    assert sorted(tasks) == [("explicit", 8.0), ("implicit", 1.0), ("main", 5.0)]
    names = {"ex": "explicit", "im": "implicit", "main": "main"}
    assert [task for task, _ in tasks] == [names[part] for part in order.split("_")]


@pytest.mark.parametrize(
    ("value", "told"),
    [("'3'", "got 3"), ("true", "got true"), ("3.0", "got 3.0"), ("null", "got null")],
)
def test_a_string_a_truth_value_or_a_float_is_no_integer(value, told):
    assert _faults(f"quantizer.levels={value}") == [f"quantizer.levels: Input should be a valid integer ({told})"]


def test_an_override_that_cannot_be_read_is_told_as_it_was_typed():
    assert _faults("prompts.max_tokens=[")[0].startswith("prompts.max_tokens=[: cannot be read as key=value")


def test_a_summary_before_the_ads_it_counts_is_refused_with_the_remedies():
    (fault,) = _faults("prompts.arrangement=[profile,summary,behaviors]")
    assert fault.startswith("sft.tuning.loss_on is 'history_and_response', but prompts.arrangement puts the summary")
    assert "prompts.summary=false, or sft.tuning.loss_on=response" in fault


@pytest.mark.parametrize(
    ("task", "settings", "told"),
    [
        ("next_n", (), "set prompts.next_n above 1, or leave it out"),
        ("next_n_control", ("prompts.next_n=2",), "set a seed as prompts.next_n_control, or leave it out"),
    ],
)
def test_a_task_without_pairs_is_refused_before_anything_is_made(task, settings, told):
    assert _faults(f"sft.stages=[{{explicit: 1}},{{main: 1, {task}: 1}}]", *settings) == [
        f"sft.stages has the task {task!r}, which prompts make no pairs for: {told}"
    ]
    check([f"sft.stages=[{{{task}: 1}}]", "prompts.next_n=2", "prompts.next_n_control=0"])


def test_alignment_without_impressions_is_refused_before_anything_is_trained():
    assert _faults("data=amazon_beauty") == [
        "alignment is 'dpo', but data=amazon_beauty has no impressions with ECPM, so there are no pairs to learn from: "
        "use alignment=none"
    ]
    assert _faults("data=completejourney")[0].endswith("use alignment=none or alignment.preferences.train_targets=true")
    check(["data=completejourney", "alignment.preferences.train_targets=true"])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("abc", "decoding.beam_width: Input should be a valid integer (got abc)"),
        ("0", "decoding.beam_width: Input should be greater than or equal to 1 (got 0)"),
        ("[4,0,8]", "decoding.beam_width.1: Input should be greater than or equal to 1 (got 0)"),
        ("null", "decoding.beam_width: Input should be a valid integer (got null)"),
    ],
)
def test_a_number_or_a_list_of_them_is_told_as_one_setting(value, told):
    assert _faults(f"decoding.beam_width={value}") == [told]


def test_a_folder_of_filters_must_be_there_before_anything_runs(tmp_path):
    told = "decoding.filters is 'nowhere', but there is no such folder: name the folder of the tables of filters, or "
    assert _faults("decoding.filters=nowhere") == [told + "give null to filter nothing"]
    assert _faults("model=x", "decoding.filters=nowhere", name="generate")[0].startswith(told)
    check([f"decoding.filters={tmp_path}"])


def test_lists_for_all_users_need_a_model_and_nothing_else():
    assert _faults(name="generate") == ["model: is missing: give model=VALUE"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = load_generate(compose("generate", ["model=store/aligned/KEY"]))
    assert (run.model, run.data, run.as_of, run.audience) == ("store/aligned/KEY", None, None, None)
    assert run.ray_actors is None
    assert run.decoding == _load().decoding
    assert (run.compute, run.store) == (_load().compute, _load().store)


def test_all_faults_of_lists_for_all_users_are_told_at_once():
    sources = ", ".join(sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
    assert _faults("as_of=-1", "data.root=today", "ray_actors=0", "metrics.k=1", name="generate") == [
        "model: is missing: give model=VALUE",
        f'data: no option is chosen: give data=OPTION first, one of {sources} (got {{"root": "today"}})',
        "as_of: Input should be greater than or equal to 0 (got -1)",
        "ray_actors: Input should be greater than or equal to 1 (got 0)",
        'metrics: unknown key (got {"k": 1})',
    ]


@pytest.mark.parametrize("typed", ["prompts.profile=false", "prompts=paper", "seed=1", "sft/tuning=paper"])
def test_what_lists_take_from_the_models_training_is_named(typed):
    key, _, value = typed.partition("=")
    group = key.split(".")[0].split("/")[0]
    assert _faults("model=KEY", typed, name="generate") == [
        f"{key}: unknown key (got {value}): generate.py takes {group} from the model's training"
    ]


def test_prompts_that_a_platform_made_come_without_tables_and_without_a_time(tmp_path):
    given = ("model=KEY", f"audience={tmp_path}")
    check(given, name="generate")
    assert _faults("model=KEY", "audience=nowhere", name="generate") == [
        "audience is 'nowhere', but there is no such folder: name a folder of prompts-*.parquet and prompts.json, or "
        "give null to make the prompts from data"
    ]
    (fault,) = _faults(*given, "data=tables", "data.root=today", name="generate")
    assert fault.startswith(f"audience is '{tmp_path}', but data is given too: ")
    assert fault.endswith("leave out audience or data")
    (fault,) = _faults(*given, "data=tables", "data.root=today", "as_of=0", name="generate")
    assert fault.endswith("leave out audience or data and as_of")


@pytest.mark.parametrize(
    "typed",
    [
        (),
        ("prompts.next_n=4",),  # pairs, but no stage that learns them
        ("sft=ex_im_next_n", "prompts.next_n=3"),
        ("sft.stages=[{next_n_control: 1}]", "prompts.next_n=3", "prompts.next_n_control=0"),
    ],
)
def test_more_ads_a_pass_than_are_learned_are_refused(typed):
    assert _faults("decoding.next_n=4", *typed) == [
        "decoding.next_n is 4, but the model is not tuned to name 4 ads one after another: use sft=ex_im_next_n "
        "prompts.next_n=4, or decoding.next_n=1"
    ]
    check(["decoding.next_n=3", "sft=ex_im_next_n", "prompts.next_n=3"])
    check(["decoding.next_n=2", "sft.stages=[{next_n_control: 1}]", "prompts.next_n=3", "prompts.next_n_control=0"])


def test_codes_are_compared_as_they_were_learned():
    assert _faults("sft.tuning.support=trie", "alignment=none") == [
        "decoding.normalizer is 'full', but sft.tuning.support='trie' teaches nothing of codes that lead to no ad: use "
        "decoding=trie, or sft.tuning.support=vocab"
    ]
    assert _faults("sft.tuning.support=trie", "decoding=trie") == [
        "alignment.support is 'vocab', but sft.tuning.support='trie' teaches nothing of codes that lead to no ad: use "
        "alignment.support=trie, or sft.tuning.support=vocab"
    ]
    check(["sft.tuning.support=trie", "decoding=trie", "alignment.support=trie"])


def test_the_model_of_lists_and_todays_tables_are_enough():
    check(["model=KEY", "data=tables", "data.root=today", "as_of=1700000000"], name="generate")


@pytest.mark.parametrize(
    ("files", "fewest", "of_index"),
    [
        ([ROOT / "README.md"], 20, 2),
        pytest.param(list((ROOT / "docs").glob("*.md")), 30, 2, marks=pytest.mark.slow),
        pytest.param(list(CONF.rglob("*.yaml")), 80, 2, marks=pytest.mark.slow),
    ],
    ids=["readme", "docs", "heads_of_options"],
)
def test_every_command_in_the_readme_the_docs_and_the_heads_of_the_options_is_right(files, fewest, of_index):
    text = "\n".join(path.read_text() for path in files)
    text = re.sub(r"\\\n#? *", "", text)  # a command may go on in the next line
    found = re.findall(r"python (train|evaluate|index|generate)\.py +([^`#\n]*)", text)
    assert len(found) >= fewest
    assert sum(entry == "index" for entry, _ in found) >= of_index
    for entry, command in found:
        command = re.sub(r"\b(seed=\d+)(,\d+)+", r"\1", command)  # one seed is as right as another
        typed = shlex.split(command.split("  ")[0].rstrip(".,;)"))
        _passes(entry if entry in ("index", "generate") else "run", *typed)


def test_every_value_of_a_sweep_is_checked():
    faults = _faults("sft=ex_im_main,nope", "quantizer.levels=2,3,0")
    assert sorted(fault.split(" (")[0] for fault in faults) == [
        "quantizer.levels: Input should be greater than or equal to 1",
        "sft: no such option",
    ]


def test_a_right_command_line_passes():
    check(["-m", "sft=ex_im_main,main_only", "alignment=none,dpo", "seed=0,1", "--config-dir", "somewhere"])


def test_seed_zero_is_a_seed_and_reaches_every_stage_but_the_world():
    zero, seven = _load("seed=0"), _load("seed=7")
    assert (zero.lm.seed, zero.sft.tuning.seed, zero.data.seed) == (0, 0, 0)
    assert (seven.lm.seed, seven.sft.tuning.seed, seven.data.seed) == (7, 7, 0)


def test_numbers_with_an_exponent_are_numbers():
    assert _load("sft/tuning=paper", "prompts=paper").sft.tuning.learning_rate == 6e-5


@pytest.mark.parametrize("entry", ["train.py", "evaluate.py", "index.py", "generate.py"])
def test_a_wrong_configuration_ends_with_code_1_before_anything_heavy_is_imported(entry, tmp_path):
    program = f"""
import runpy, sys
sys.argv = ["{entry}", "decoding.num_ads=0", "compute=nope"]
try:
    runpy.run_path("{ROOT / entry}", run_name="__main__")
finally:
    heavy = {{"torch", "transformers", "lightning", "polars", "sklearn"}} & set(sys.modules)
    print("heavy:", sorted(heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.strip() == "heavy: []"
    assert "decoding.num_ads: Input should be greater than or equal to 1 (got 0)" in done.stderr
    assert "compute: no such option (got nope)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
