import pytest

from experiments.headroom import main, settings, table


@pytest.fixture(scope="module")
def measured():
    text = main(["data/world=tiny", "seeds=0", "data.world.users.num_users=150", "baselines.linear.max_epochs=4"])
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    return {row[0]: float(row[-1]) for row in rows}


def test_the_oracle_is_above_all_systems_and_the_linear_model_above_popularity(measured):
    rates = {name: rate for name, rate in measured.items() if name.startswith("HR@8")}
    assert len(rates) == 5
    assert max(rates, key=lambda name: rates[name]) == "HR@8 oracle"
    assert measured["HR@8 linear"] > measured["HR@8 popularity"]


def test_the_table_has_a_column_a_seed_and_the_mean():
    assert table({"0": {"x": 1.0}, "1": {"x": 2.0}}).splitlines() == [
        "| | seed 0 | seed 1 | mean |",
        "|---|---|---|---|",
        "| x | 1.000 | 2.000 | 1.500 |",
    ]


@pytest.mark.slow
def test_without_a_world_the_world_is_small():
    assert settings([]) == settings(["data/world=small"]) != settings(["data/world=tiny"])


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("seeds=a", "seeds is 'a', but must be whole numbers of 0 or more: write seeds=0,1,2"),
        ("seeds=0,", "seeds is '0,', but must be"),
        ("data/world=big", r"data/world: no such option \(got big\); choose from paper, small, tiny"),
        ("data.world.dais=3", "data.world.dais: unknown key"),
        ("small", "small is no override: write key=value"),
        ("data=tables", "data"),
    ],
)
def test_a_wrong_argument_ends_the_program_with_its_fault(argument, told):
    with pytest.raises(SystemExit, match=told):
        main([argument])
