import pytest
from rich.console import Console

from leadre.report.table import PAPER_COLUMNS, Grid, caption, markdown, rich_table, score_grid, show

SCORES = {
    "users": 200,
    "excluded": {"no_test_target": 7, "target_outside_catalog": 0},
    "chance": {"HR@1": 0.001, "HR@8": 0.008},
    "systems": {
        "LEADRE": dict.fromkeys(PAPER_COLUMNS, 0.3) | {"HR@10": 0.4, "invalid_ads": 0},
        "own_history": dict.fromkeys(PAPER_COLUMNS, 0.1) | {"LTRR@4": None},
        "oracle": dict.fromkeys(PAPER_COLUMNS, 0.9),
        "popularity": dict.fromkeys(PAPER_COLUMNS, 0.1) | {"HR@8": 0.3, "Diversity@8": 5.25},
    },
}


def test_baselines_come_first_then_leadre_and_the_oracle_last():
    grid = score_grid(SCORES)
    assert grid.head == ("", *PAPER_COLUMNS)
    assert [row[0] for row in grid.rows] == ["own history", "popularity", "LEADRE", "oracle"]


def test_the_best_of_each_column_stands_out_without_the_oracle_and_with_all_ties():
    grid = score_grid(SCORES)
    in_column = {name: sorted(row for row, column in grid.strong if column == i) for i, name in enumerate(grid.head)}
    assert in_column["HR@1"] == [2]
    assert in_column["HR@8"] == [1, 2]
    assert in_column["Diversity@8"] == [1]
    assert in_column[""] == [2]  # LEADRE's own name


def test_a_missing_number_is_a_dash_and_nothing_is_best_where_all_are_zero():
    grid = score_grid({"systems": {"LEADRE": {"HR@3": 0.0, "LTRR@3": None, "short_lists": 3}}})
    assert grid.head == ("", "HR@3", "LTRR@3")
    assert grid.rows == (("LEADRE", "0.0000", "–"),)
    assert grid.strong == {(0, 0)}


def test_the_rates_of_wrong_ads_are_the_last_columns_in_percent_and_never_the_best():
    systems = {
        "LEADRE": dict.fromkeys(PAPER_COLUMNS, 0.3) | {"invalid_rate": 0.0, "duplicate_rate": 0.0125},
        "popularity": dict.fromkeys(PAPER_COLUMNS, 0.1) | {"invalid_rate": 0.5, "duplicate_rate": 0.00001},
    }
    grid = score_grid({"systems": systems})
    assert grid.head[-2:] == ("Invalid", "Duplicate")
    assert [row[-2:] for row in grid.rows] == [("50%", "<.01%"), ("0%", "1.25%")]
    assert not any(column > len(PAPER_COLUMNS) for _, column in grid.strong)


def test_with_the_rates_the_console_table_still_fits_80_columns(capsys):
    rates = {"invalid_rate": 0.0123, "duplicate_rate": 0.00001}
    systems = {name: system | rates for name, system in SCORES["systems"].items()}
    show(SCORES | {"systems": systems}, console=Console(width=80))
    text = capsys.readouterr().out
    assert "…" not in text
    assert "own history" in text
    assert text.count("1.23%") == text.count("<.01%") == 4
    assert max(map(len, text.splitlines())) <= 80
    show(SCORES | {"systems": systems}, console=Console(width=120))
    assert "0.3000  0.3000" in capsys.readouterr().out  # more room is used where there is some


def test_the_caption_counts_who_is_left_out():
    assert caption(SCORES) == "Means over 200 users; left out: 7 no test target. By chance HR@8 is 0.0080."
    assert caption({"users": 3}) == "Means over 3 users."


def test_markdown_by_hand():
    lines = markdown(score_grid(SCORES)).splitlines()
    assert lines[0].startswith("|  | HR@1 | HR@4 |")
    assert lines[1] == "|---|" + "---:|" * 8
    assert lines[4].startswith("| **LEADRE** | **0.3000** |")
    assert markdown(Grid(("", "x"), (("a|b\nc", "1"),))).splitlines()[2] == "| a\\|b c | 1 |"


def test_the_console_table_fits_80_columns_and_shows_brackets_as_they_are(capsys):
    show(SCORES, console=Console(width=80))
    text = capsys.readouterr().out
    assert "Means over 200 users" in text
    assert "…" not in text
    for number in ("0.3000", "0.9000", "5.2500"):
        assert number in text
    Console(width=80).print(rich_table(Grid(("", "x"), (("[red]", "1"),)), title="t"))
    assert "[red]" in capsys.readouterr().out


def test_scores_without_systems_are_an_error():
    with pytest.raises(ValueError, match=r"scores holds no systems: give the content of scores\.json"):
        score_grid({})
