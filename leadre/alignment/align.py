"""Stage: a tuned model and preferences come in, a model that prefers valuable ads among the plausible ones goes out."""

import json
import logging
import shutil
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedModel

from leadre import tables
from leadre.alignment import methods
from leadre.alignment.config import DpoAlignment, PairAlignment, RrhfAlignment, SdpoAlignment, TuningConfig
from leadre.alignment.module import Aligner, Loss
from leadre.alignment.reference import stored_logprobs
from leadre.alignment.rows import PreferenceRows, preference_rows
from leadre.alignment.validation import Ecpms, Sample, measure, sample
from leadre.catalog import trie
from leadre.decoding.beam_search import sid_tokens
from leadre.lm.logprob import TrieSupport
from leadre.lm.model import AdLM, load_to_train, save
from leadre.ltr import known, ranker
from leadre.ltr.known import Known
from leadre.ltr.ranker import Ranker
from leadre.training.batches import Batches, bucketed_plan, micro_batches_of
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.device import set_up_device
from leadre.training.fit import fit

log = logging.getLogger(__name__)
VERSION = 3
REFERENCE = "reference.safetensors"
VALID_KS = (1, 4, 8)


def align(
    config: PairAlignment,
    model: Path,
    world: Path,
    catalog: Path,
    pairs: Path,
    tokens: Path,
    ltr: Path,
    preferences: Path,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> None:
    """Align a model with business value (LEADRE 4.3.2) and write its folder.

    Writes beside the model ``reference.safetensors`` (the tuned model's log-probabilities ``(N, R)`` of the chosen and
    rejected ads), ``budget.json`` (pairs, rows, steps, tokens), and the metrics.

    Args:
        config: The kind of alignment and its numbers.
        model: The tuned model.
        world: Gives the times of the validation targets, and to the ranker what it looks at.
        catalog: Gives the S-IDs and the trie.
        pairs: Gives the users of the training and validation prompts.
        tokens: Gives those prompts.
        ltr: Gives the ranker and the labels of validation users.
        preferences: Gives the pairs.
        out: The folder of the result.
        compute: Devices, threads, checkpoints.
        logger: Where metrics go beside the files.

    Raises:
        ValueError: If the inputs do not belong together, or the chosen ads become too unlikely.
    """
    lm = load_to_train(model, config.tuning.precision)
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    levels = json.loads((catalog / "tokens.json").read_text())["levels"]
    codes = TrieSupport(trie.load(catalog / "trie.safetensors"), sid_tokens(lm.sid_offsets, levels))
    rows = _rows(config, lm, codes, sids, preferences, pairs, tokens, out=out, compute=compute)
    plan = _plan(rows, config.tuning)
    chosen = _sample(world, pairs, tokens, ltr, sids, config.tuning)
    module = _module(config, lm.model, codes, chosen, sids["ad_id"].to_list(), _ecpms(ltr, world))
    _train(config, module, rows, plan, out=out, compute=compute, logger=logger)
    save(lm, out)
    _account(rows, plan, out)


def _rows(
    config: PairAlignment,
    lm: AdLM,
    codes: TrieSupport,
    sids: pl.DataFrame,
    preferences: Path,
    pairs: Path,
    tokens: Path,
    *,
    out: Path,
    compute: ComputeConfig,
) -> PreferenceRows:
    """The pairs as rows, with the log-probabilities of the model as it is; where no loss reads them, the guard does."""
    rows = preference_rows(
        tables.read(tables.PREFERENCES, preferences / "preferences.parquet"),
        sids,
        _users(pairs / "main.train.parquet"),
        tokens / "main.train.safetensors",
        sid_offsets=lm.sid_offsets,
        negatives=config.negatives if isinstance(config, SdpoAlignment) else 1,
    )
    reference = stored_logprobs(
        out / "checkpoints" / REFERENCE,  # it must outlive a kill, as a checkpoint does
        lm.model,
        rows,
        support=codes if config.support == "trie" else None,
        batch_size=config.tuning.batch_size,
        device=set_up_device(compute),
        autocast=config.tuning.precision == "bf16-mixed",
    )
    return rows._replace(reference=reference)


def _users(path: Path) -> pl.Series:
    return pl.read_parquet(path, columns=["user_id"])["user_id"]


def _plan(rows: PreferenceRows, tuning: TuningConfig) -> list[NDArray[np.int64]]:
    """As many steps as one row a pair takes, for every method.

    Our choice: where several rejected ads share a row there are fewer rows, which are seen the more often, so that
    methods are compared at equal pairs, steps and rows a step.
    """
    steps = tuning.epochs * -(-rows.num_pairs // tuning.batch_size)
    epochs = -(-steps // -(-len(rows.lengths) // tuning.batch_size))
    return bucketed_plan(rows.lengths, batch_size=tuning.batch_size, epochs=epochs, seed=tuning.seed)[:steps]


def _train(
    config: PairAlignment,
    module: Aligner,
    rows: PreferenceRows,
    plan: list[NDArray[np.int64]],
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> None:
    tuning = config.tuning
    micro_batches = micro_batches_of(tuning.batch_size, tuning.micro_batch_size, devices=compute.processes)
    fit(
        module,
        Batches(plan, rows.batch, micro_batches=micro_batches),
        out=out,
        compute=compute,
        logger=logger,
        name=config.kind,
        valid=module.valid or None,
        valid_every_steps=-(-len(plan) // tuning.validations) if module.valid else None,
        gradient_clip=tuning.gradient_clip,
        precision=tuning.precision,
        seed=tuning.seed,
    )
    shutil.copy(out / "checkpoints" / REFERENCE, out)


def _account(rows: PreferenceRows, plan: list[NDArray[np.int64]], out: Path) -> None:
    seen = int(rows.lengths[np.concatenate(plan)].sum())
    budget = {"pairs": rows.num_pairs, "rows": len(rows.lengths), "steps": len(plan), "tokens": seen}
    (out / "budget.json").write_text(json.dumps(budget))
    log.info("%s steps over %s pairs in %s rows", len(plan), rows.num_pairs, len(rows.lengths))


def _sample(world: Path, pairs: Path, tokens: Path, ltr: Path, sids: pl.DataFrame, tuning: TuningConfig) -> Sample:
    return sample(
        tokens / "main.valid.safetensors",
        _users(pairs / "main.valid.parquet"),
        tables.read(tables.SPLIT, world / "split.parquet"),
        tables.read(tables.LISTS, ltr / "valid_labels.parquet"),
        sids,
        num_users=tuning.valid_users if tuning.validations else 0,
        seed=tuning.seed,
    )


def _ecpms(ltr: Path, world: Path) -> Ecpms:
    @cache
    def read() -> tuple[Ranker, Known]:
        """Once for all validations, and not at all without any."""
        return ranker.load(ltr), known.read(world)

    return lambda users, ads: ranker.estimate(*read(), users, ads).ecpm


def _module(
    config: PairAlignment, model: PreTrainedModel, codes: TrieSupport, chosen: Sample, ads: Sequence[str], ecpms: Ecpms
) -> Aligner:
    tuning = config.tuning
    ks = [k for k in VALID_KS if k <= tuning.valid_beam_width]
    return Aligner(
        model,
        loss=_loss(config),
        catalog=codes,
        support=config.support,
        reward_scale=config.beta if isinstance(config, DpoAlignment | SdpoAlignment) else 1.0,
        max_chosen_drop=config.max_chosen_drop,
        batch_size=tuning.batch_size,
        valid=chosen.prompts,
        measure=lambda lists: measure(lists, chosen, ads, ecpms, ks=ks),
        beam_width=tuning.valid_beam_width,
        learning_rate=tuning.learning_rate,
        min_learning_rate=tuning.min_learning_rate,
        warmup_share=tuning.warmup_share,
        weight_decay=tuning.weight_decay,
    )


def _loss(config: PairAlignment) -> Loss:
    """The method with its numbers."""
    match config:
        case DpoAlignment(loss="ipo"):
            return partial(methods.ipo, beta=config.beta, sft_weight=config.sft_weight)
        case DpoAlignment():
            return partial(
                methods.dpo,
                beta=config.beta,
                label_smoothing=config.label_smoothing,
                sft_weight=config.sft_weight,
            )
        case SdpoAlignment():
            return partial(methods.sdpo, beta=config.beta, sft_weight=config.sft_weight)
        case RrhfAlignment(variant="official"):
            return partial(methods.rrhf_official, sft_weight=config.sft_weight)
        case RrhfAlignment():
            return partial(methods.rrhf, sft_weight=config.sft_weight)
        case _:
            return methods.sft_on_chosen
