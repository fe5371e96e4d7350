import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from leadre.report.curves import Curves, draw_codebooks, draw_hits, draw_losses, perplexity, read_curves

ROWS = [{"step": step, "train/loss": 3 / (step + 1), "train/lr": 0.1} for step in range(40)] + [
    {"step": step, "valid/hr@8": step / 100, "valid/ndcg@8": step / 200} for step in (10, 20, 40)
]


def colors(path):
    with Image.open(path) as image:
        assert image.size[0] > 300
        assert image.size[1] > 200
        return {color for _, color in image.convert("RGB").getcolors(maxcolors=image.width * image.height)}


def test_losses_of_every_stage_are_drawn(tmp_path):
    stages = [Curves("codes", [{"step": 1, "train/reconstruction_loss": 1.0}]), Curves("sft: main", ROWS)]
    assert draw_losses(stages, tmp_path / "loss.png")
    assert {(0, 114, 178), (255, 255, 255)} <= colors(tmp_path / "loss.png")


def test_hits_of_two_stages_stand_on_one_axis_with_two_colors(tmp_path):
    stages = [Curves("explicit", ROWS), Curves("codes", [{"step": 1, "train/loss": 1.0}]), Curves("main", ROWS)]
    assert draw_hits(stages, tmp_path / "hr.png")
    assert {(0, 114, 178), (213, 94, 0)} <= colors(tmp_path / "hr.png")


def test_a_single_validation_can_be_seen(tmp_path):
    assert draw_hits([Curves("main", [{"step": 5, "valid/hr@1": 0.5}])], tmp_path / "hr.png")
    assert (0, 114, 178) in colors(tmp_path / "hr.png")


def test_more_stages_than_fit_a_row_wrap(tmp_path):
    assert draw_losses([Curves(f"stage {i}", ROWS) for i in range(5)], tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size[1] > 2 * 300


def test_codebooks_are_drawn_a_panel_a_level(tmp_path):
    assert draw_codebooks([[3, 0, 9, 1], [2, 2, 2, 7]], tmp_path / "codebook.png")
    assert len(colors(tmp_path / "codebook.png")) > 2


def test_nothing_to_draw_writes_no_file(tmp_path):
    path = tmp_path / "none.png"
    assert not draw_losses([], path)
    assert not draw_losses([Curves("a", [{"step": 1, "valid/hr@8": 0.5}])], path)
    assert not draw_hits([Curves("a", [{"step": 1, "train/loss": 0.5}])], path)
    assert not draw_codebooks([], path)
    assert not draw_codebooks([[0, 0]], path)
    assert not path.exists()


def test_the_same_curves_give_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        draw_losses([Curves("main", ROWS)], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@given(st.lists(st.integers(0, 20), max_size=8))
def test_perplexity_lies_between_one_and_the_used_codes(counts):
    used = sum(count > 0 for count in counts)
    assert min(used, 1) <= perplexity(counts) + 1e-9
    assert perplexity(counts) <= used + 1e-9
    assert perplexity([count * 3 for count in counts]) == pytest.approx(perplexity(counts))


def test_perplexity_by_hand():
    assert perplexity([1, 3]) == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))
    assert perplexity([0]) == 0


def test_metrics_are_read_line_by_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_curves("main", path) == Curves("main", ROWS)


def test_a_missing_or_broken_file_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl is missing: a stage that trains a network writes it"):
        read_curves("main", path)
    path.write_text('{"step": 1}\n{"step": 2, "tr')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is no JSON"):
        read_curves("main", path)
    path.write_text('{"train/loss": 1}')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1 has no step"):
        read_curves("main", path)
