"""What a model was trained with, and whether today's users can be served with it."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.artifacts import Result, fingerprint, origins
from leadre.config import SEVERAL
from leadre.prompts.config import PromptsConfig

TRAINING_ALONE = (
    "reuse_seed",
    "template_seed",
    "profile_seed",
    "next_n_control",
    "content_control",
    "summary_control",
    "description_control",
)
"""Settings of prompts that today's users have no part in: draws for training, and controls of studies."""
log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A model, and what it was trained with."""

    model: Result
    world: Result
    catalog: Result
    pairs: Result


def trained(name: str, folder: Path) -> Trained:
    """The model that the user names, and its origins: so lists are made from what it has learned.

    Args:
        name: As the user typed it.
        folder: The folder that it stands for.

    Raises:
        ValueError: If it is no model.
        ArtifactError: If the model, or a result that lists are made with, is missing or broken.
    """
    wanted = Trained._fields[1:]
    stage = folder.parent.name
    found = {}
    if stage in ("aligned", "sft") and (folder / "manifest.json").is_file():
        found = origins(folder, wanted)
    if set(wanted) - set(found):
        raise ValueError(
            f"model is {name!r}, but {folder} is no model in a store: name an aligned or sft result by its folder "
            "or key, as train.py prints it (store/aligned/KEY)"
        )
    return Trained(found[stage], *(found[each] for each in wanted))


def prompts_of(pairs: Result) -> PromptsConfig:
    """The settings of the prompts that a model was trained with.

    What chooses targets and responses, of which an audience has none, is neutral: it moves no key. So is augmentation,
    which is for training alone.
    """
    neutral: dict[str, Any] = dict.fromkeys(TRAINING_ALONE)
    return dataclasses.replace(_settings_of(pairs), reuse_every=1, next_n=1, **neutral)


def given_audience(folder: Path) -> Result:
    """The prompts that a platform made itself, as a result outside of the store: its files are its key.

    Raises:
        ValueError: If ``prompts.json`` is missing, or does not tell what a reader of prompts must know.
    """
    path = folder / "prompts.json"
    about = _read(path) if path.is_file() else {}
    if missing := [name for name in ("max_tokens", "soft_tokens", "language") if name not in about]:
        raise ValueError(
            f"audience is {str(folder)!r}, whose prompts.json tells no {', '.join(missing)}: write it beside the "
            "prompts, as docs/prompts.md tells"
        )
    return Result("audience", fingerprint(str(folder))[:16], folder, 0.0, reused=True)


def check_language(today: Path, pairs: Result, *, of: str) -> None:
    """Refuse users whose prompts are in another language than those that the model was trained with.

    Args:
        today: ``world.json`` or ``prompts.json`` of today.
        pairs: The pairs of the training.
        of: What has the language: ``data`` or ``audience``.
    """
    now, then = _read(today)["language"], _read(pairs.path / "prompts.json")["language"]
    if now != then:
        remedy = f"give data.language={then}" if of == "data" else f"compose its prompts in {then!r}"
        raise ValueError(f"{of}.language is {now!r}, but the model was trained with prompts in {then!r}: {remedy}")


def check_next_n(ads: int, then: Trained) -> None:
    """Refuse more ads a pass than the model has learned to name; a stage of its tuning that is gone tells nothing."""
    if ads == 1:
        return
    learned, (stages, all_there) = _settings_of(then.pairs).next_n, _tuned(then.model)
    if learned < ads or (all_there and not any(task in stage["tasks"] for stage in stages for task in SEVERAL)):
        raise ValueError(
            f"decoding.next_n is {ads}, but the model was not tuned to name {ads} ads one after another "
            f"({then.model.path}): train one with sft=ex_im_next_n prompts.next_n={ads}, or give decoding.next_n=1"
        )


def check_support(normalizer: str, then: Trained) -> None:
    """Refuse to compare codes otherwise than the model has learned to, see ``sft.tuning.support``."""
    stages, _ = _tuned(then.model)
    if normalizer != "trie" and any(stage["tuning"].get("support") == "trie" for stage in stages):
        raise ValueError(
            f"decoding.normalizer is {normalizer!r}, but the model was tuned with sft.tuning.support='trie' "
            f"({then.model.path}) and knows nothing of codes that lead to no ad: give decoding=trie"
        )


def warn_of_learned(audience: Result, then: Trained) -> None:
    """Warn of lists as of a time whose future the model has learned from."""
    as_of = _read(audience.path / "prompts.json").get("as_of")
    split = tables.scan(tables.SPLIT, then.world.path / "split.parquet")
    last = split.filter(pl.col("role") == "train").select(pl.col("time").max()).collect().item()
    if as_of is not None and last is not None and as_of <= last:
        log.warning(
            "as_of is %s, but the model was trained on behaviors up to %s: do not score these lists", as_of, last
        )


def _settings_of(pairs: Result) -> PromptsConfig:
    then = _read(pairs.path / "manifest.json")["config"]
    try:
        return TypeAdapter(PromptsConfig).validate_json(json.dumps(then), strict=True)
    except ValidationError as error:
        faults = "; ".join(f"prompts.{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())
        raise ValueError(
            f"model was trained with prompts ({pairs.path}) whose settings no longer fit ({faults}): train it anew, so "
            "that it reads the prompts that it was trained with"
        ) from None


def _tuned(model: Result) -> tuple[list[dict[str, Any]], bool]:
    """The settings of the stages that a model was tuned in, the last first, and whether none of them is gone."""
    stages: list[dict[str, Any]] = []
    stage, key = model.stage, model.key
    while key is not None:
        path = model.path.parent.parent / stage / key / "manifest.json"
        if not path.is_file():
            return stages, False
        manifest = _read(path)
        stages += [manifest["config"]] if stage == "sft" else []
        stage, key = "sft", manifest["inputs"].get("sft")
    return stages, True


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
