"""Text of an ad: the feature mapping rule (LEADRE 3.2), and the cleaning of text that came from outside."""

from collections.abc import Sequence
from typing import Literal

import polars as pl

MAX_CHARACTERS = 512
"""Imported text is cut to this length. Our choice: four times the longest title of the bundled sources."""

# White-space controls and line separators part words, so they become a space. What is left of the controls, and the
# characters that reorder or hide text (bidi marks, tags that spell invisible words), say nothing to a person, but would
# to a model. The joiners U+200C and U+200D stay: scripts and emoji need them.
_BREAKS = r"[\t\n\x0b\x0c\r\x1c-\x1f\x{85}\x{2028}\x{2029}]"
_HIDDEN = (
    r"[\x00-\x1f\x7f-\x{9f}\x{61c}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2066}-\x{206f}\x{feff}"
    r"\x{fff9}-\x{fffb}\x{e0000}-\x{e007f}]"
)
_EDGES = r"^\s+|\s+$"

_CLAUSES = {
    "en": (
        "The name of the ad is {}",
        "The product type is {}",
        "The first-level category is {}",
        "The second-level category is {}",
        "The attributes include: {}",
    ),
    "zh": ("广告名称是{}", "产品类型是{}", "一级类目是{}", "二级类目是{}", "属性包括：{}"),
}
_JOINTS = {"en": ("; ", ", ", "."), "zh": ("；", "，", "。")}


def describe(
    *,
    name: str | None,
    product_type: str | None,
    first_category: str | None,
    second_category: str | None,
    attributes: Sequence[str],
    language: Literal["en", "zh"],
) -> str:
    """Fill the feature mapping rule with an ad's features (LEADRE 3.2).

    A missing feature leaves its clause out; an ad without any feature has the empty text. The rule of the
    paper parts clauses by ``;``, as its example in 4.3.1 does; the ``.`` in its example in 3.2 is taken for a slip.
    Our choice: the Chinese wording, which the paper does not print.

    Example:
        >>> describe(name="ID.3", product_type="Car", first_category=None, second_category=None,
        ...          attributes=["brand_VW", "fuel_none"], language="en")
        'The name of the ad is ID.3; The product type is Car; The attributes include: brand_VW, fuel_none.'
    """
    between_clauses, between_attributes, end = _JOINTS[language]
    features = (name, product_type, first_category, second_category, between_attributes.join(attributes))
    told = [clause.format(feature) for clause, feature in zip(_CLAUSES[language], features, strict=True) if feature]
    return between_clauses.join(told) + end if told else ""


def cleaned(text: pl.Expr) -> pl.Expr:
    r"""Text from outside made safe to show and compare: NFC, no control, NUL or bidi characters, capped.

    Line breaks and tabs become spaces; spaces at the ends go. Cleaning clean text changes nothing; null stays null.
    A polars column cannot hold surrogates: `paired_surrogates` comes first.

    Example:
        >>> pl.select(cleaned(pl.lit(" cafe\u0301\x00\tbar\u202e "))).item()
        'café bar'
    """
    return _visible(text).str.slice(0, MAX_CHARACTERS).str.replace_all(r"\s+$", "")


def num_cut(text: pl.Expr) -> pl.Expr:
    r"""How many texts `cleaned` cuts to `MAX_CHARACTERS`.

    Example:
        >>> pl.DataFrame({"text": ["x" * 513, "x" * 512 + "\n", None]}).select(num_cut(pl.col("text"))).item()
        1
    """
    long = text.filter(text.str.len_bytes() > MAX_CHARACTERS)  # normal form C has no more characters than that
    return (_visible(long).str.len_chars() > MAX_CHARACTERS).sum()


def paired_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: a pair of surrogates, as JSON escapes an emoji, becomes its character.

    Raises:
        ValueError: If a surrogate has no partner: no file can say which character it was to be.
    """
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise ValueError("a surrogate without its partner, which is half a character") from error


def _visible(text: pl.Expr) -> pl.Expr:
    visible = text.str.replace_all(_BREAKS, " ").str.replace_all(_HIDDEN, "").str.normalize("NFC")
    return visible.str.replace_all(_EDGES, "")
