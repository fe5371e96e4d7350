"""Codes made elsewhere, in the format of LETTER's ``index.json``: ``{"0": ["<a_3>", "<b_4>", ...], ...}``."""

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leadre.quantizer.config import ImportedConfig, QuantizerConfig

TOKEN = re.compile(r"<([a-z])_([0-9]{1,9})>")
MAX_LEVELS = 25
MAX_CODE = 65_535
SHOWN = 5
"""How many faults of one sort are told one by one."""


def imported_codes(
    path: Path, ad_ids: Sequence[str], *, known: Sequence[str] = (), key_shift: int = 0
) -> dict[str, list[int]]:
    """Read the codes of ads.

    Args:
        path: A ``.json`` or ``.json.gz`` file: one object, of lists of tokens ``<letter_code>``; the letter of
            level 1 is a.
        ad_ids: The ads that need codes.
        known: Other ads that may stand in the file.
        key_shift: 0: a key is an ad_id. Else a key is a number, and the ad_id is that number plus the shift.

    Returns:
        The codes of each ad of the file, as many for each.

    Raises:
        ValueError: If the file is missing or no such object; or, with all faults at once, if an ad has no codes, a key
            is of no ad or not a number, two keys name one ad, lists differ in length or are too long, a token is
            none or stands at a level that is not its letter's, or a code is too large.
    """
    lists, faults = _ads_of(_read(path), key_shift)
    missing = [ad for ad in ad_ids if ad not in lists]
    unknown = sorted(lists.keys() - set(ad_ids) - set(known))
    faults += _told("ads have no codes", missing) + _told("keys are of no ad", unknown)
    faults += _length_faults(lists)
    codes = {ad: [_code(level, token) for level, token in enumerate(tokens)] for ad, tokens in lists.items()}
    outside = {
        f"{lists[ad][level]!r} at level {level + 1} of {ad}": code
        for ad, found in codes.items()
        for level, code in enumerate(found)
        if not 0 <= code <= MAX_CODE
    }
    bad, large = ([place for place, code in outside.items() if (code < 0) == negative] for negative in (True, False))
    faults += _told("tokens are not <letter_code> with the letter of their level, a for the first", bad)
    faults += _told(f"codes are above {MAX_CODE:,}, and every code up to the largest needs a token", large)
    if faults:
        raise ValueError(
            f"{path} does not fit the ads:\n" + "\n".join(f"  {fault}" for fault in faults) + "\nmend the file, or set "
            f"quantizer.key_shift (now {key_shift}) to what an ad_id is above its key"
        )
    return codes


def fingerprint(config: QuantizerConfig) -> str:
    """The sha256 of the file that codes are imported from; empty for a kind that makes its own.

    Raises:
        ValueError: If the file is missing.
    """
    return hashlib.sha256(_bytes(Path(config.path))).hexdigest() if isinstance(config, ImportedConfig) else ""


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"quantizer.path is {str(path)!r}, but there is no such file: name an index.json or .json.gz")
    return path.read_bytes()


def _read(path: Path) -> list[tuple[str, Any]]:
    """The keys and values of the file's one object, keys that stand twice included."""
    raw = _bytes(path)
    try:
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): give an index.json or index.json.gz") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise ValueError(f'{path} holds no object of codes: it should look like {{"0": ["<a_3>", "<b_4>"], ...}}')
    return pairs


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands."""


def _ads_of(pairs: list[tuple[str, Any]], key_shift: int) -> tuple[dict[str, list[object]], list[str]]:
    ad_ids = {key: _shifted(key, key_shift) for key, _ in pairs}
    counts = Counter(ad_ids[key] for key, _ in pairs if ad_ids[key] is not None)
    numberless = [key for key, ad in ad_ids.items() if ad is None]
    faults = _told("keys are no numbers, so that they cannot be shifted", numberless)
    faults += _told("ads have more than one key", [str(ad) for ad, count in counts.items() if count > 1])
    faults += _told("keys have no list of tokens", [key for key, tokens in pairs if not isinstance(tokens, list)])
    lists = {ad: tokens for key, tokens in pairs if (ad := ad_ids[key]) is not None and isinstance(tokens, list)}
    return lists, faults


def _shifted(key: str, shift: int) -> str | None:
    if not shift:
        return key
    return str(int(key) + shift) if re.fullmatch(r"-?[0-9]+", key, re.ASCII) else None


def _length_faults(lists: dict[str, list[object]]) -> list[str]:
    lengths = Counter(len(tokens) for tokens in lists.values())
    if len(lengths) > 1:
        counts = ", ".join(f"{count} have {length}" for length, count in sorted(lengths.items()))
        return [f"ads have unequal numbers of codes: {counts}"]
    wrong = [length for length in lengths if not 1 <= length <= MAX_LEVELS]
    return [f"ads have {length} codes each: 1 to {MAX_LEVELS} are possible" for length in wrong]


def _code(level: int, token: object) -> int:
    """The code of a token; -1 where it is none of its level."""
    match = TOKEN.fullmatch(token) if isinstance(token, str) else None
    return int(match[2]) if match and ord(match[1]) - ord("a") == level else -1


def _told(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}"]
