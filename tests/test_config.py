import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from leadre.config import CONF, ConfigError, RunConfig, check, load

ROOT = Path(__file__).parent.parent
OPTIONS = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.rglob("*.yaml") if path.parent != CONF)
NEEDS = {
    "prompts=paper": ["sft/tuning=paper"],
    "data=amazon_beauty": ["alignment=none"],
    "data=completejourney": ["alignment=none"],
}
"""What some options must stand beside."""


def _load(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(compose("run", list(overrides)))


def _faults(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as told:
        check(arguments)
    return [line.strip() for line in str(told.value).splitlines()[1:]]


def test_there_are_options_to_test():
    assert len(OPTIONS) >= 30


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_on_disk_composes_to_a_right_configuration(option):
    needs = NEEDS.get(option, [])
    check([option, *needs])


def test_all_faults_are_told_at_once_each_by_its_key():
    assert _faults(
        "quantizer.levels=0",
        "quantizer.levles=3",
        "sft=nope",
        "decoding.beam_width=abc",
        "data.world.days=3.5",
        "quantiser=rqvae",
        "sft.stages=[{exlicit: 1}]",
    ) == [
        "sft: no such option (got nope); choose from ex_im_main, ex_main, main_only, mix_main_ex, mix_main_im_ex",
        "data.world.days: Input should be a valid integer (got 3.5)",
        "quantizer.levels: Input should be greater than or equal to 1 (got 0)",
        "quantizer.levles: unknown key (got 3)",
        "sft.stages.0.exlicit: Input should be 'explicit', 'implicit' or 'main' (got exlicit)",
        "decoding.beam_width: Input should be a valid integer (got abc)",
        "quantiser: unknown key (got rqvae)",
    ]


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


def test_alignment_without_impressions_is_refused_before_anything_is_trained():
    assert _faults("data=amazon_beauty") == [
        "alignment is 'dpo', but data=amazon_beauty has no impressions with ECPM, so there are no pairs to learn from: "
        "use alignment=none"
    ]
    assert _faults("data=completejourney")[0].endswith(
        "use alignment=none or alignment.preferences.reject_train_targets=true"
    )
    check(["data=completejourney", "alignment.preferences.reject_train_targets=true"])


def test_every_command_in_the_readme_the_docs_and_the_heads_of_the_options_is_right():
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *CONF.rglob("*.yaml")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    found = [match for line in lines if (match := re.search(r"python (train|evaluate|index)\.py +([^`#]*)", line))]
    assert len(found) >= 60
    assert sum(entry == "index" for entry, _ in (match.groups() for match in found)) >= 5
    for entry, command in (match.groups() for match in found):
        typed = shlex.split(command.split("  ")[0].rstrip(".,;)"))
        check(typed, name="index" if entry == "index" else "run")


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


@pytest.mark.parametrize("entry", ["train.py", "evaluate.py", "index.py"])
def test_a_wrong_configuration_ends_with_code_1_before_anything_heavy_is_imported(entry, tmp_path):
    program = f"""
import runpy, sys
sys.argv = ["{entry}", "quantizer.levels=0", "sft=nope"]
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
    assert "quantizer.levels: Input should be greater than or equal to 1 (got 0)" in done.stderr
    assert "sft: no such option (got nope)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
