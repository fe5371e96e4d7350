"""The one way to declare settings: frozen, keyword-only, typed, no unknown keys."""

from typing import TypeVar, cast, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Turn a class of annotations into a settings class.

    Values are checked strictly: ``"3"``, ``True`` and ``3.0`` are no integers, and a key that the
    class does not declare is an error. A scientific number has no default here: it lives in ``conf/``.
    """
    declared = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))(cls)
    return cast(type[T], declared)
