"""Stage: a tuned model comes in, a model that prefers valuable ads among the plausible ones goes out."""

import json
import logging
import shutil
from pathlib import Path

import polars as pl
import torch
from transformers import PreTrainedModel

from leadre import tables
from leadre.alignment.config import DpoAlignment, PreferenceConfig, RrhfAlignment
from leadre.alignment.module import Dpo, Rrhf
from leadre.alignment.preferences import PREFERENCES, preferences
from leadre.alignment.reference import stored_logprobs
from leadre.alignment.rows import Rows, preference_rows
from leadre.lm.model import load, save
from leadre.training.batches import Batches, bucketed_plan
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.device import set_up_device
from leadre.training.fit import fit

log = logging.getLogger(__name__)
VERSION = 1


def align(
    config: DpoAlignment | RrhfAlignment,
    model: Path,
    world: Path,
    catalog: Path,
    pairs: Path,
    tokens: Path,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> None:
    """Align a model with business value (LEADRE 4.3.2) and write its folder.

    Writes beside the model ``preferences.parquet``, ``preferences.json`` (what was left out and why), for DPO
    ``reference.safetensors`` (the tuned model's log-probabilities, row n of ``preferences.parquet``), and the metrics.

    Args:
        config: The kind of alignment and its numbers.
        model: The tuned model.
        world: Gives impressions and split.
        catalog: Gives the S-IDs.
        pairs: Gives the users of the training prompts.
        tokens: Gives the training prompts.
        out: The folder of the result.
        compute: Devices, threads, checkpoints.
        logger: Where metrics go beside the files.

    Raises:
        ValueError: If no preference pair can be made, or the inputs do not belong together.
    """
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    users = tables.read(tables.PAIRS, pairs / "main.train.parquet")["user_id"]
    found = _pairs(config.preferences, world, sids, users, out=out)
    lm = load(model)
    # The optimizer's small steps would be rounded away in bfloat16 weights, unless that is asked for.
    lm.model.to(torch.bfloat16 if config.tuning.precision == "bf16-true" else torch.float32)  # type: ignore[arg-type]
    rows = preference_rows(found, sids, users, tokens / "main.train.safetensors", sid_offsets=lm.sid_offsets)
    if config.kind == "dpo":
        rows = _with_reference(config, lm.model, rows, out=out, compute=compute)
    plan = bucketed_plan(
        rows.lengths,
        batch_size=config.tuning.batch_size,
        epochs=config.tuning.epochs,
        seed=config.tuning.seed,
    )
    fit(
        _module(config, lm.model),
        Batches(plan, rows.batch),
        out=out,
        compute=compute,
        logger=logger,
        name=config.kind,
        gradient_clip=config.tuning.gradient_clip,
        precision=config.tuning.precision,
    )
    if config.kind == "dpo":
        shutil.copy(out / "checkpoints" / "reference.safetensors", out)
    save(lm, out)


def _pairs(config: PreferenceConfig, world: Path, sids: pl.DataFrame, users: pl.Series, *, out: Path) -> pl.DataFrame:
    """The preference pairs, written to ``out`` with an account of what was left out."""
    found = preferences(
        tables.read(tables.IMPRESSIONS, world / "impressions.parquet"),
        tables.read(tables.SPLIT, world / "split.parquet"),
        sids,
        users.drop_nulls(),
        config=config,
    )
    tables.write(PREFERENCES, found.pairs, out / "preferences.parquet")
    (out / "preferences.json").write_text(json.dumps(found.account(), indent=2) + "\n", encoding="utf-8")
    log.info("%s preference pairs of %s impressions", len(found.pairs), found.impressions)
    return found.pairs


def _with_reference(
    config: DpoAlignment, model: PreTrainedModel, rows: Rows, *, out: Path, compute: ComputeConfig
) -> Rows:
    reference = stored_logprobs(
        out / "checkpoints" / "reference.safetensors",  # it must outlive a kill, as a checkpoint does
        model,
        rows,
        batch_size=config.tuning.batch_size,
        device=set_up_device(compute),
        autocast=config.tuning.precision == "bf16-mixed",
    )
    return rows._replace(reference=reference)


def _module(config: DpoAlignment | RrhfAlignment, model: PreTrainedModel) -> Dpo | Rrhf:
    tuning = config.tuning
    if config.kind == "dpo":
        return Dpo(
            model,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            sft_weight=config.sft_weight,
            max_chosen_drop=config.max_chosen_drop,
            learning_rate=tuning.learning_rate,
            min_learning_rate=tuning.min_learning_rate,
            warmup_share=tuning.warmup_share,
            weight_decay=tuning.weight_decay,
        )
    return Rrhf(
        model,
        sft_weight=config.sft_weight,
        learning_rate=tuning.learning_rate,
        min_learning_rate=tuning.min_learning_rate,
        warmup_share=tuning.warmup_share,
        weight_decay=tuning.weight_decay,
    )
