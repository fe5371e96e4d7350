"""What a result was made from, all of it, and what its tuning cost: read from the manifests of a store."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.result import Stage

TUNED = ("sft", "preferences", "aligned")
"""Stages that make a language model out of another, or what the next of them learns from."""
NOT_TUNED = ("popularity", "own_history", "linear", "oracle")
"""Systems that no such stage stands behind."""


class Built(NamedTuple):
    """A stored result.

    Attributes:
        stage: Its stage.
        key: Its key.
        path: Its folder.
        seconds: How long its build took.
        config: Its settings.
        inputs: What it was made from: stage to key.
    """

    stage: str
    key: str
    path: Path
    seconds: float
    config: Any
    inputs: dict[str, str]


def lineage(path: Path) -> list[Built]:
    """A result and all that it was made from, each once, inputs before what was made from them.

    Results that are gone are left out: a manifest names them, but there is nothing to read.
    """
    found: dict[Path, Built] = {}
    _add(path, found)
    return list(found.values())


def _add(path: Path, found: dict[Path, Built]) -> None:
    manifest = path / "manifest.json"
    if path in found or not manifest.is_file():
        return
    content = json.loads(manifest.read_text(encoding="utf-8"))
    for stage, key in content["inputs"].items():
        _add(path.parent.parent / stage / key, found)
    fields = ("stage", "key", "seconds", "config", "inputs")
    found[path] = Built(path=path, **{field: content[field] for field in fields})


def tuned(results: Sequence[Built], *, system: str) -> list[Stage]:
    """What a system was trained in, stage by stage.

    Args:
        results: A result of stage ``scores`` and all that it was made from.
        system: LEADRE, or one that its lists were shortened to, was tuned and aligned; a learned baseline has a stage
            of its own; the others have none.
    """
    own = f"baseline_{system}"
    wanted = {own} if any(result.stage == own for result in results) else set(TUNED)
    told = []
    for result in results:
        if result.stage in wanted and system not in NOT_TUNED:
            budget = _budget(result.path)
            tasks = "+".join(budget.get("tasks", {}))
            name = f"{result.stage}: {tasks}" if tasks else result.stage
            cost = {"steps": budget.get("steps"), "tokens": budget.get("tokens"), "seconds": result.seconds}
            told.append(Stage(stage=result.stage, name=name, key=result.key, **cost))
    return told


def _budget(path: Path) -> dict[str, Any]:
    file = path / "budget.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content
