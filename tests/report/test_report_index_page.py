import io
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from leadre.report.index_page import (
    _draw_bits,
    _draw_use,
    draw_index,
    in_words,
    levels_grid,
    show_index,
    write_index_page,
)


def level(**changed):
    told = {"codes": 4, "used": 3, "usage": 0.75, "dead": 1, "perplexity": 2.8, "counts": [5, 3, 2, 0]}
    return told | {"bits": 1.5, "bits_left": 3.32, "share": 0.6, "energy_left": 0.2} | changed


def inspection(**changed):
    collisions = {"rate": 0.1, "colliding_share": 0.2, "largest_group": 2, "pair_rate": 0.0222}
    told = {
        "kind": "rqvae",
        "ads": 10,
        "distinct_texts": 9,
        "active": 8,
        "retired": 3,
        "before": {
            "ads": collisions,
            "texts": collisions | {"rate": 0.0, "largest_group": 1},
            "sizes": [
                {"smallest": 1, "largest": 1, "groups": 8, "ads": 8},
                {"smallest": 2, "largest": 2, "groups": 1, "ads": 2},
            ],
            "largest": [{"ads": 2, "texts": 1, "codes": [3, 1], "names": ["50% | *off* <b>"]}],
        },
        "catalog": {"extra_codes": 18, "extra_codes_used": 2, "spilled": 0},
        "levels": [level(), level(bits=1.0, bits_left=1.82, share=0.4, energy_left=0.5)],
        "bits": {"whole": 2.5, "most": 3.12, "evenness": 0.97},
        "reconstruction_error": 0.123,
        "category": {
            "column": "second_category",
            "texts": 9,
            "categories": 4,
            "bits_by_level": [1.1, 0.2],
            "bits_by_level_shuffled": [0.4, 0.3],
            "purity": [
                {"pairs": 45, "same_category": 0.2},
                {"pairs": 9, "same_category": 0.8},
                {"pairs": 0, "same_category": None},
            ],
        },
        "cosine": {
            "by_shared_prefix": [
                {"shared": 0, "pairs": 90, "mean": 0.1, "low": 0.11, "high": 0.2},
                {"shared": 1, "pairs": 20, "mean": 0.7, "low": 0.5, "high": 0.9},
                {"shared": 2, "pairs": 0, "mean": None, "low": None, "high": None},
            ],
            "any_pair": {"shared": None, "pairs": 90, "mean": 0.15, "low": 0.0, "high": 0.3},
        },
    }
    return told | changed


def ad(name="Sea <b>tea</b> | 1", **changed):
    told = {"ad_id": "ad_1", "name": name, "description": "The *name*.", "category": "tea", "sid": "<a_3> <b_1> <c_0>"}
    return told | {"same_text": 1} | changed


NEIGHBORS = [
    {
        "ad": ad(same_text=1200),
        "nearest": [
            ad("Leaf", cosine=0.91234, shared=2),
            ad("Cup", category="cups", cosine=0.5, shared=0, sid=None),
        ],
        "prefix": [],
    }
]


def page(folder, **changed):
    path = write_index_page(
        folder, title="My *index*", command="python index.py", inspection=inspection(**changed), neighbors=NEIGHBORS
    )
    return path.read_text()


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory):
    return page(tmp_path_factory.mktemp("index"))


def test_the_levels_are_laid_out_with_their_sums():
    grid = levels_grid(inspection())
    assert grid.rows[0] == (
        *("level 1", "3 of 4", "1", "2.8", "1.50", "3.32", "60.0 %", "20.0 %", "1.10", "0.40", "80.0 %"),
    )
    assert grid.rows[1][-3:] == ("0.20", "0.30", "–")
    assert grid.rows[2] == ("all", "", "2", "", "2.50", "", "", "10.0 %", "1.30", "", "")


def test_what_was_not_measured_is_a_dash_and_not_a_zero():
    grid = levels_grid(inspection(levels=[level(energy_left=None, share=None)], category={"texts": 0}))
    assert grid.rows[0][6:] == ("–", "–", "–", "–", "–")
    assert grid.rows[1][7:] == ("–", "–", "", "")
    bits = inspection()["bits"] | {"evenness": None}
    told = in_words(inspection(reconstruction_error=None, bits=bits, category={"texts": 0}))
    assert len(told) == 3
    assert "evenly" not in told[-1]


def test_the_page_says_what_the_bits_and_the_categories_are_of(whole_page):
    told = "- The codes carry 2.50 bits of the 3.12 that the ads' texts tell; the levels share them 97 %"
    assert told in whole_page
    assert "- Categories are those of second_category: 4, of 9 distinct texts." in whole_page
    assert "H(text) - H(c\\_<l)" in whole_page


def test_the_terminal_shows_the_levels_and_the_sentences():
    console = Console(file=io.StringIO(), width=130)
    show_index(inspection(), console=console)
    shown = console.file.getvalue()
    assert "level 2" in shown
    assert "Before the extra code 0 % of the texts and 10.0 % of the ads collide" in " ".join(shown.split())
    assert "Of 18 extra codes 2 are used" in " ".join(shown.split())


def test_names_of_others_cannot_become_markup(whole_page):
    assert "# My \\*index\\*" in whole_page
    assert "### Sea \\<b\\>tea\\</b\\> \\| 1" in whole_page
    assert "50% \\| \\*off\\* \\<b\\>" in whole_page
    assert "<b>" not in whole_page
    assert "> The \\*name\\*." in whole_page


def test_neighbors_stand_in_tables_with_the_shared_codes_in_bold(whole_page):
    assert "| Leaf | ✓ | 0.912 | 2 | **`<a_3> <b_1>`** `<c_0>` |" in whole_page
    assert "| Cup | cups | 0.500 | 0 | not in the catalog |" in whole_page
    assert "Longest shared prefix: none." in whole_page
    assert "tea · `<a_3> <b_1> <c_0>` · (1,200 ads with this text) · ad\\_1" in whole_page
    assert "![Use of codes, bits, group sizes and likeness](index.png)" in whole_page


def test_two_ads_without_a_category_are_not_of_the_same_one(tmp_path):
    sample = {"ad": ad(category=None), "nearest": [ad("Leaf", category=None, cosine=0.9, shared=2)], "prefix": []}
    path = write_index_page(tmp_path, title="i", command="c", inspection=inspection(), neighbors=[sample])
    assert "| Leaf | – | 0.900 | 2 |" in path.read_text()


def test_a_level_that_uses_one_code_is_drawn():
    axes = Figure().subplots()
    _draw_use(axes, [level(counts=[10, 0, 0, 0]), level()])
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]


@pytest.mark.parametrize("codes", [256, 2])
def test_the_numbers_of_the_bits_stay_clear_of_the_legend(codes):
    figure = Figure(figsize=(5.7, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_bits(axes, [level(bits=1.0, bits_left=3.5 - place, codes=codes) for place in range(3)])
    figure.canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert not any(legend.overlaps(text.get_window_extent()) for text in axes.texts)


def test_a_page_without_neighbors_or_groups_leaves_their_sections_out(tmp_path):
    before = inspection()["before"] | {"largest": []}
    write_index_page(tmp_path, title="i", command="c", inspection=inspection(before=before), neighbors=[])
    text = (tmp_path / "index.md").read_text()
    assert "The largest groups" not in text
    assert "Ads and their neighbors" not in text


def test_the_picture_has_its_four_panels_and_is_the_same_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        draw_index(inspection(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1495, 1040)
        quarters = [image.convert("RGB").crop((x, y, x + 747, y + 520)) for y in (0, 520) for x in (0, 747)]
    assert all(len(quarter.getcolors(maxcolors=747 * 520)) > 20 for quarter in quarters)


def test_an_index_of_one_ad_can_be_drawn(tmp_path):
    nothing = {"shared": 0, "pairs": 0, "mean": None, "low": None, "high": None}
    one = inspection(
        levels=[level(bits=0.0, bits_left=0.0, share=None, counts=[1, 0, 0, 0])],
        before=inspection()["before"] | {"sizes": [{"smallest": 1, "largest": 1, "groups": 1, "ads": 1}]},
        cosine={"by_shared_prefix": [nothing, nothing | {"shared": 1}], "any_pair": nothing},
    )
    draw_index(json.loads(json.dumps(one)), tmp_path / "index.png")
    assert (tmp_path / "index.png").exists()


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone is missing: make the folder that the page goes to first"):
        page(tmp_path / "gone")
