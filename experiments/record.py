"""What is kept of a study's ``result.json``: checked, small, and without a path of the machine that it ran on."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.result import StudyResult, read_result

PATH = "PATH"
"""Stands where a path of a machine stood."""
_ENDS_ALONE = {"users", "of_users", "of_seeds"}
DROPPED: Mapping[str, Any] = {
    "store": True,
    "rows": {"__all__": {"runs": {"__all__": {"seconds", "stages"}}}},
    "claims": {
        "__all__": {
            "same_tokens": True,
            "difference": _ENDS_ALONE,
            "control_difference": _ENDS_ALONE,
            "excess": _ENDS_ALONE,
        }
    },
}
"""Fields that are not kept: of the machine and its times, and what no page tells."""
LONGEST_SLUG = 48
_WEB = r"https?://[\w.~%/@#?&+-]+"
_BEGINS = r"(?:file:/|(?<![\w.~/<])/(?=[^\s=])|(?<![\w/])~[\w.-]*/|(?<!\w)[A-Za-z]:[/\\]|(?:[\w.~-]*[/\\])*\.\.[/\\])"
"""A path that is absolute, of a home, of a drive, or of a parent folder."""
_QUOTED = "|".join(
    rf"(?<={quote})(?P<{name}>[^{quote}\s]*?)(?:{_BEGINS}|[^{quote}\n]*[/\\]\.\.[/\\])[^{quote}\n]*(?={quote})"
    for name, quote in (("single", "'"), ("double", '"'), ("back", "`"))
)
_BARE = rf"{_BEGINS}(?:[^\s'\"`]|['\"`](?=\w))*?(?=[).,;:\]}}]*(?:$|\s|['\"`](?!\w)))"
_PLACES = re.compile(rf"(?P<web>{_WEB})|{_QUOTED}|{_BARE}")
_OVERRIDE = re.compile(r"(?:[+~]*[A-Za-z_][\w./@:]*=|~[A-Za-z_])")
_OF_A_MACHINE = re.compile(r"(?:\w+\.)*(?:root|model|previous_catalog)|store\.[\w.]+|decoding\.filters")
"""Settings whose values are places of a machine, or private names."""
_OF_DATA = re.compile(r"(?:data|compute|store|logger)(?:[./].*)?|seeds|jobs|category|text")
"""Settings that a record's name tells by its data, or that do not change what is found; category and text are Table 3's
and in the name of its data."""


def overrides_of(command: str) -> tuple[str, list[str]]:
    """A command line before its first override, and its overrides; values keep their spaces.

    Example:
        >>> overrides_of("python -m x data.root=/a b sft.stages=[main, main] ~logger")
        ('python -m x', ['data.root=/a b', 'sft.stages=[main, main]', '~logger'])
    """
    parts = [""]
    for word in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\S)+", command):
        if _OVERRIDE.match(word):
            parts.append(word)
        else:
            parts[-1] = f"{parts[-1]} {word}".strip()
    return parts[0], parts[1:]


def without_value(override: str) -> str:
    """An override without its value if that is a place of a machine.

    Example:
        >>> without_value("lm.model=me/private model"), without_value("lm=local")
        ('lm.model=PATH', 'lm=local')
    """
    key = override.partition("=")[0]
    return f"{key}={PATH}" if _OF_A_MACHINE.fullmatch(key.lstrip("+~")) and "=" in override else override


def without_values(command: str) -> str:
    """A command line without the values that are places of a machine."""
    head, overrides = overrides_of(command)
    return " ".join(filter(None, [head, *map(without_value, overrides)]))


def read_record(path: Path) -> StudyResult:
    """What a study left, or what is kept of it, without what is not kept.

    Raises:
        ValueError: If the file is no result of a study; it names the file and what is wrong.
    """
    return kept(read_result(path))


def kept(result: StudyResult) -> StudyResult:
    """A result without the paths of its machine and the private values of its settings."""
    content = without_paths(result.model_dump(mode="json", exclude=DROPPED))
    content["command"] = without_values(content["command"])
    for row in content["rows"]:
        row["overrides"] = [without_value(text) for text in row["overrides"]]
    return StudyResult.model_validate(content)


def write_record(path: Path, record: StudyResult) -> None:
    """Write what is kept of a result."""
    path.write_text(record.model_dump_json(indent=1, exclude=DROPPED) + "\n", encoding="utf-8")


def without_paths(value: Any) -> Any:  # noqa: ANN401
    """Every path of a machine in what JSON holds becomes ``PATH``; addresses of the web and shares stay.

    A path is absolute, of a home or of a parent folder. It ends with its quotes, else at a space or the line's end.

    Example:
        >>> without_paths(["x data.root=/home/me/data y", "HR/NDCG", "https://a.b/c/d", "(/tmp/x)", "no '../a b/c'"])
        ['x data.root=PATH y', 'HR/NDCG', 'https://a.b/c/d', '(PATH)', "no 'PATH'"]
    """
    if isinstance(value, str):
        return _PLACES.sub(_kept, value)
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    return value


def _kept(found: re.Match[str]) -> str:
    return found["web"] or f"{found['single'] or found['double'] or found['back'] or ''}{PATH}"


def file_name(record: StudyResult) -> str:
    """Where a record is kept: one file a study and data set, and one for each other set of overrides.

    Such as ``table2_task_order.completejourney.json``, and ``table2_task_order.completejourney.lm_small.json`` of a run
    with ``lm=small``: what is run otherwise does not replace what is run as it comes.
    """
    data = re.sub(r"[^a-z0-9]+", "_", record.data.told.replace(",", "").lower()).strip("_")
    return ".".join(filter(None, [record.study, data, _slug(record.command), "json"]))


def _slug(command: str) -> str:
    varied = [text for text in overrides_of(command)[1] if not _OF_DATA.fullmatch(text.partition("=")[0].lstrip("+~"))]
    whole = " ".join(sorted(varied))
    slug = re.sub(r"[^a-z0-9.-]+", "_", whole.lower()).strip("_.")
    if len(slug) <= LONGEST_SLUG:
        return slug
    return f"{slug[:LONGEST_SLUG].rstrip('_.')}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
