"""Numbers and texts as a page shows them."""

from datetime import datetime

from markupsafe import Markup

from leadre.prompts.show import escaped
from leadre.report.table import NOTHING


def percent(share: float | None) -> str:
    """A change in per cent, with a sign; nothing for no number.

    Example:
        >>> percent(0.0571), percent(-0.3), percent(0.0), percent(None)
        ('+5.7 %', '−30.0 %', '0.0 %', '')
    """
    if share is None:
        return ""
    rounded = round(100 * share, 1)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.1f} %"


def short(number: float | None) -> str:
    """A large number for readers.

    Example:
        >>> short(880), short(12_345), short(3_456_608), short(None)
        ('880', '12.3 k', '3.46 M', '–')
    """
    if number is None:
        return NOTHING
    if number < 10_000:
        return f"{number:,.0f}"
    size, name = next(pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= pair[0])
    return f"{number / size:.3g} {name}"


def count(number: float | None) -> str:
    """A number with its thousands told apart, or a dash for none."""
    return NOTHING if number is None else f"{number:,}"


def signed(value: float | None) -> str:
    """A difference of two scores.

    Example:
        >>> signed(0.02), signed(-12.5), signed(None)
        ('+0.0200', '−12.50', '–')
    """
    if value is None:
        return NOTHING
    return (f"{value:+.4f}" if abs(value) < 10 else f"{value:+.2f}").replace("-", "−")


def chance(p: float | None) -> str:
    """A p-value for readers.

    Example:
        >>> chance(0.0312), chance(2e-9), chance(None)
        ('0.031', '< 0.001', '–')
    """
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def tick(value: float) -> str:
    """A tick of an axis.

    Example:
        >>> tick(-0.1), tick(20.0), tick(0.0)
        ('−0.1', '20', '0')
    """
    return f"{value:.6g}".replace("-", "−")


def day(date: datetime) -> str:
    """The day and the minute.

    Example:
        >>> day(datetime(2026, 11, 2, 20, 15, 7))
        '2 November 2026, 20:15'
    """
    return f"{date:%d %B %Y, %H:%M}".lstrip("0")


def capital(text: str) -> str:
    """Text with a capital first letter."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Text with a capital first letter and a full stop.

    Example:
        >>> sentence("no control was run")
        'No control was run.'
    """
    text = capital(text.strip())
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def visible(value: object) -> object:
    r"""Text with what cannot be seen spelled out: a name may not turn the line around, nor break the file's encoding.

    Example:
        >>> print(visible("left \u202eright"))
        left \u202eright
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(escaped(line) for line in value.split("\n"))
