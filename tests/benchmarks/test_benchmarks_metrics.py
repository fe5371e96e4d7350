"""What the benchmark of the scores measures, and parity with the libraries on a few cases."""

import json

import numpy as np
import pytest

from benchmarks import metrics
from benchmarks.measure import main

FIGURES = {
    "million": [
        "scores of 1,000,000 users: CPU-s",
        "Value@K of 1,000,000 users: CPU-s",
        "intervals alone: CPU-s",
    ],
    "stage": [
        "stage scores: CPU-s for 1,000,000 users",
        "stage scores: MB at the most",
        "stage scores: MB more than for a fifth of the users",
    ],
}


def test_the_cases_have_all_that_the_contract_speaks_of():
    lists, _, run, qrels = metrics.random_cases(400, seed=0)
    listed = lists >= 0
    assert not listed.any(axis=1).all()  # an empty list, of which the libraries get none
    assert len(run) == listed.any(axis=1).sum()
    assert (listed[:, 1:] & ~listed[:, :-1]).any()  # a place without an ad between ads
    assert any(len(set(row[row >= 0])) < (row >= 0).sum() for row in lists)  # an ad that stands twice
    assert {len(good) for good in qrels.values()} == {1, 2, 3, 4, 5}


def test_a_dictionary_of_the_libraries_by_hand():
    run, qrels = metrics.as_dictionaries([[5, -1, 5, 7], [-1, -1, -1, -1]], [[7, -1], [3, 3]])
    assert run == {
        "0": {
            "5": 0.0,
            "none1": -1.0,
            "7": -2.0,
        }
    }
    assert qrels == {"0": {"7": 1}, "1": {"3": 1}}


def test_ir_measures_gives_every_user_the_same_scores():
    cases = metrics.random_cases(400, seed=0)
    ours, theirs = metrics.our_scores(cases), metrics.by_ir_measures(cases)
    assert len(ours) == 12
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # numba speaks about casts while it compiles
def test_ten_thousand_random_cases_are_equal_in_all_three(capsys):
    main([metrics.parity], [])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert [figure["holds"] for figure in figures] == [True, True]
    assert "10,000 random users" in figures[0]["note"]


@pytest.mark.parametrize("name", ["million", pytest.param("stage", marks=pytest.mark.slow)])
def test_a_few_users_give_all_figures_of_speed_and_memory(monkeypatch, capsys, name):
    monkeypatch.setattr(metrics, "USERS", 2000)
    monkeypatch.setattr(metrics, "BLOCK", 100)
    monkeypatch.setattr(metrics, "ADS", 500)
    main([getattr(metrics, name)], ["--quick"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    figures = {figure["name"]: figure["value"] for figure in told}
    assert list(figures) == FIGURES[name]
    assert all(value is not None for value in figures.values())
