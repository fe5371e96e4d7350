"""The harness of the benchmarks, with a clock that the variants turn themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Figure, main, race


def test_each_variant_gets_the_same_input_and_goes_first_in_its_turn():
    calls = []
    variants = {name: lambda given, name=name: calls.append((name, given)) for name in "abc"}
    race(variants, lambda turn: turn * 10, repeats=3, warmup=1, check=lambda *_: None)
    assert "".join(name for name, _ in calls) == "abcbcacababc"
    assert [given for _, given in calls] == [0] * 3 + [10] * 3 + [20] * 3 + [30] * 3


def test_the_median_leaves_the_warm_up_out():
    """Five turns of 100, 1, 9, 2, 3 seconds: the first warms up, the median of the rest is 2.5."""
    now, takes = [0.0], iter([100.0, 1.0, 9.0, 2.0, 3.0])

    def work(_):
        now[0] += next(takes)

    assert race({"a": work}, lambda turn: turn, repeats=4, check=lambda *_: None, clock=lambda: now[0]) == {"a": 2.5}


def test_the_making_of_inputs_and_the_check_are_not_timed():
    now = [0.0]

    def slow(*_):
        now[0] += 50

    assert race({"a": lambda _: None}, slow, repeats=2, check=slow, clock=lambda: now[0]) == {"a": 0}


def test_results_are_compared_in_every_repetition():
    def check(given, results):
        assert results["a"] == given
        assert results["a"] == results["b"], "they differ"

    with pytest.raises(AssertionError, match="they differ"):
        race({"a": lambda turn: turn, "b": lambda turn: min(turn, 2)}, lambda turn: turn, repeats=3, check=check)


@pytest.mark.parametrize(
    ("value", "relation", "goal", "holds"),
    [
        (2.0, ">=", 1.8, True),
        (1.8, ">=", 1.8, True),
        (1.7, ">=", 1.8, False),
        (1.2, "<=", 1.2, True),
        (1.3, "<=", 1.2, False),
        (float("nan"), "<=", 1.2, False),
        (None, "<=", 1.2, None),
        (5.0, None, None, None),
    ],
)
def test_a_figure_holds_when_it_stands_to_its_goal_as_it_must(value, relation, goal, holds):
    assert Figure("speed", value, relation, goal).holds is holds


def _quick_and_right(setting):
    yield Figure("speed", 2.0 if setting.quick else 3.0, ">=", 1.8)
    yield Figure("told", 7.0, note="by the way")


def _slow(setting):
    yield Figure("speed", float("nan"), ">=", 1.8)


def _broken(setting):
    yield Figure("before", 1.0)
    raise ModuleNotFoundError("No module named 'sklearn'")


def _wrong(setting):
    yield Figure("before", 1.0)
    raise AssertionError("codes differ\nand more")


def _last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]


def test_the_last_line_is_json_and_a_run_that_holds_exits_with_0(capsys):
    assert main([_quick_and_right], ["--quick"]) == 0
    assert _last_line(capsys) == [
        {"name": "speed", "value": 2.0, "goal": ">= 1.8", "holds": True, "note": ""},
        {"name": "told", "value": 7.0, "goal": None, "holds": None, "note": "by the way"},
    ]


def test_a_figure_that_misses_exits_with_1(capsys):
    assert main([_quick_and_right, _slow], []) == 1
    assert _last_line(capsys)[2] == {"name": "speed", "value": None, "goal": ">= 1.8", "holds": False, "note": ""}


def test_unequal_results_exit_with_1_and_the_figures_before_are_kept(capsys):
    assert main([_wrong, _quick_and_right], []) == 1
    figures = _last_line(capsys)
    assert [figure["name"] for figure in figures] == ["before", "_wrong: equal results", "speed", "told"]
    assert figures[1]["holds"] is False
    assert figures[1]["note"] == "codes differ"


def test_any_error_is_a_figure_that_misses_with_its_reason_and_the_rest_still_runs(capsys):
    assert main([_broken, _quick_and_right], ["--quick"]) == 1
    figures = _last_line(capsys)
    assert [figure["name"] for figure in figures] == ["before", "_broken: measured to its end", "speed", "told"]
    assert figures[1]["holds"] is False
    assert figures[1]["note"] == "ModuleNotFoundError: No module named 'sklearn'"


def test_one_measurement_may_be_chosen(capsys):
    assert main([_wrong, _quick_and_right], ["--only", "_quick_and_right"]) == 0
    assert len(_last_line(capsys)) == 2


@pytest.mark.parametrize("name", ["indexing", "decoding", "trie"])
def test_importing_a_benchmark_imports_nothing_heavy(name):
    heavy = "{'torch', 'polars', 'sklearn', 'lightning', 'numpy'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import benchmarks.{name}, sys; print({heavy} or 'light')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "light"
