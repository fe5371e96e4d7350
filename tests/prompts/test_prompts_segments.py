import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import tables
from leadre.prompts import components
from leadre.prompts.items import items
from leadre.prompts.segments import (
    DESCRIPTION_SEPARATORS,
    ad,
    column,
    display_name,
    escape,
    in_turn,
    render,
    soft,
    text,
    unescape,
)
from leadre.prompts.wording import CHINESE, ENGLISH, wording_of

HOSTILE = [
    "^",
    ";",
    "; ",
    "/",
    ":",
    "\\",
    "<a_1, b_2>",
    ". ",
    "; 3 days ago^click on ad^",
    "; 3天前^",
    "; 3 days later^click on ad^",
    "; 3天后^",
    "\x00",
    "\u202e",
    "^5 times; ",
    "。",
]
TEXTS = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(HOSTILE)), max_size=4).map("".join)
BEHAVIOR = st.tuples(
    st.integers(0, 400),
    TEXTS,
    st.one_of(st.tuples(st.just("ad"), TEXTS, st.booleans()), st.tuples(st.just("content"), TEXTS, TEXTS)),
)


def _history(seen):
    """The behaviors as a history of one target, with an item of its own each."""
    ads, contents, rows = [], [], []
    for number, (days, action, (domain, name, more)) in enumerate(seen):
        item_id = f"item{number}"
        if domain == "ad":
            ads.append({"ad_id": item_id, "description": name, "attributes": []})
        else:
            contents.append({"item_id": item_id, "title": name, "spu": more})
        rows.append({"target": 0, "days": days, "domain": domain, "item_id": item_id, "action": action})
    worded = items(
        pl.DataFrame([{column: row.get(column) for column in tables.ADS.columns} for row in ads], tables.ADS.schema),
        pl.DataFrame(
            [{column: row.get(column) for column in tables.CONTENTS.columns} for row in contents],
            tables.CONTENTS.schema,
        ),
        catalog={f"item{n}" for n, (_, _, (domain, _, more)) in enumerate(seen) if domain == "ad" and more},
        content_title="title_spu",
    )
    schema = {"target": pl.Int64, "days": pl.Int64, "domain": pl.String, "item_id": pl.String, "action": pl.String}
    return pl.DataFrame(rows, schema).join(worded, on=["domain", "item_id"], how="left", maintain_order="left")


def _pattern(wording):
    """One behavior, up to the start of the next or the end of the string."""
    before, between, _ = map(re.escape, wording.behavior.split("{}"))
    follows = f"{re.escape(wording.next_behavior)}(?={before}\\d+{between})|{re.escape(wording.last_behavior)}\\Z"
    field = r"(?:[^\\^]|\\.)*"
    return re.compile(f"{before}(\\d+){between}({field})\\^({field}?)(?:{follows})", re.DOTALL)


def _parse(shown, wording):
    """Read behaviors back from the string alone."""
    pattern, found, place = _pattern(wording), [], 0
    while match := pattern.match(shown, place):
        days, action, what = match.groups()
        found.append((int(days), unescape(action), _parse_item(what)))
        place = match.end()
    assert place == len(shown)
    return found


def _parse_item(what):
    if what.startswith("<"):
        return ("sid", what)
    parts = [""]
    for piece in re.findall(r"\\.|.", what, re.DOTALL):
        if piece == "/":
            parts.append("")
        else:
            parts[-1] += piece
    return ("text", *map(unescape, parts))


def _expected(number, days, action, item, wording):
    domain, name, more = item
    action = wording.actions.get(action, action)
    if domain == "ad":
        return (days, action, ("sid", f"<a_{number}>") if more else ("text", *name.split("/")))
    return (days, action, ("text", name, more) if more else ("text", name))


@pytest.mark.parametrize(
    "wording", [form._replace(behavior=how) for form in (ENGLISH, CHINESE) for how in (form.behavior, form.later)]
)
@settings(deadline=None, max_examples=40)
@given(seen=st.lists(BEHAVIOR, min_size=1, max_size=4))
def test_behaviors_can_be_read_back_from_the_string_whatever_the_titles_say(seen, wording):
    history = _history(seen)
    told = components.behaviors(history, wording, ads="sid")["behaviors"].to_list()[0]
    shown = render((segment for behavior in told for segment in behavior), _Names())
    assert _parse(shown, wording) == [_expected(n, *behavior, wording) for n, behavior in enumerate(seen)]


class _Names(dict):
    def __missing__(self, ad_id):
        return f"<a_{ad_id.removeprefix('item')}>"


@pytest.mark.parametrize("wording", [ENGLISH, CHINESE])
@settings(deadline=None, max_examples=40)
@given(counts=st.dictionaries(TEXTS.filter(bool), st.integers(1, 3), min_size=1, max_size=3))
def test_the_summary_can_be_read_back_from_the_string_whatever_the_categories_say(counts, wording):
    names, times = [escape(name) for name in counts], list(counts.values())
    frequent = pl.DataFrame({"target": [0] * len(names), "name": names, "times": times})
    told = components.interest_summary(frequent, wording.summary, wording)["summary"].to_list()[0]
    shown = render(told, {}).removeprefix(wording.summary)
    before, after = map(re.escape, wording.category.split("{}"))
    found = re.findall(rf"((?:[^\\^]|\\.)*){before}(\d+){after}", shown, re.DOTALL)
    assert {unescape(name): int(count) for name, count in found} == counts


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_unescape_undoes_escape(untrusted):
    assert unescape(escape(untrusted)) == untrusted
    assert unescape(escape(untrusted, DESCRIPTION_SEPARATORS)) == untrusted


@settings(deadline=None, max_examples=40)
@given(TEXTS)
def test_no_separator_is_left_bare(untrusted):
    assert not re.findall(r"[\^;/:<]", re.sub(r"\\.", "", escape(untrusted), flags=re.DOTALL))


def test_a_display_name_is_written_as_in_the_paper():
    assert display_name("<a_51> <b_10> <c_67> <d_93> <e_0>") == "<a_51, b_10, c_67, d_93, e_0>"
    assert display_name("<a_7>") == "<a_7>"


def test_each_kind_of_segment_is_shown_in_its_own_way():
    assert render([text("x^"), soft(), ad("7")], {"7": "<a_1>"}) == "x^<Learnable Token><a_1>"


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_columns_of_segments_are_put_together_row_by_row(rows):
    left = pl.Series([text(f"l{n}") for n in range(rows)], dtype=tables.SEGMENT)
    right = pl.Series([ad(f"r{n}") for n in range(rows)], dtype=tables.SEGMENT)
    together = in_turn(left, right)
    assert together.to_list() == [[text(f"l{n}"), ad(f"r{n}")] for n in range(rows)]
    assert together.dtype == pl.List(tables.SEGMENT)


def test_every_row_gets_the_same_segments():
    frame = pl.DataFrame({"n": [1, 2]}).with_columns(head=column([text("a"), soft()]))
    assert frame["head"].to_list() == [[text("a"), soft()]] * 2


def test_a_language_without_wording_is_refused():
    with pytest.raises(ValueError, match=r"language is 'fr' in world.json, but prompts are worded in en, zh"):
        wording_of("fr")
