"""One stage of the curriculum: a tuned model out of a model and token rows."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from leadre.catalog import trie
from leadre.decoding.beam_search import sid_tokens
from leadre.lm.logprob import TrieSupport
from leadre.lm.model import AdLM, load_to_train, save
from leadre.lm.rows import Rows, concatenate, left_padded, prompts_of, read_rows
from leadre.sft.batches import Batch, collate, mixed_plan, num_learned
from leadre.sft.config import Stage, Tuning
from leadre.sft.dropout import drop_out
from leadre.sft.lora import adapt
from leadre.sft.module import Tuner
from leadre.sft.trees import alike, alone
from leadre.training.batches import Batches, micro_batches_of
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.fit import fit

VERSION = 2
VALID_KS = (1, 4, 8)
VALID_BATCH = 32
log = logging.getLogger(__name__)

Ints = NDArray[np.int64]


def tune(
    config: Stage,
    model: Path,
    catalog: Path,
    tokens: Path,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> None:
    """Tune the model in folder ``model`` on the stage's tasks and save it in ``out`` (LEADRE 4.3.1).

    The optimizer starts afresh in every stage. Our choice: the paper is silent. Whatever is tuned, lists of the main
    task are validated: their first ad is what all tasks of users ask for.

    Raises:
        ValueError: If there are no pairs of a task, or if tokens are to be frozen and there are none, or weights are
            shared out over devices.
    """
    tuning = config.tuning
    torch.manual_seed(tuning.seed)  # the start of LoRA's adapters
    lm, adapted = _loaded(model, tuning, compile=compute.compile)
    if tuning.freeze_soft_tokens:
        _check_frozen(lm, compute)
    tasks = {str(task): epochs for task, epochs in sorted(config.tasks.items())}  # the key knows no order either
    micro_batches = micro_batches_of(tuning.batch_size, tuning.micro_batch_size, devices=compute.processes)
    parts = micro_batches * compute.processes
    curriculum = _curriculum(tokens, tasks, tuning, most=math.ceil(tuning.batch_size / parts))
    valid = _valid_batches(tokens / "main.valid.safetensors", tuning)
    fit(
        _module(lm, catalog, tuning),
        Batches(curriculum.plan, curriculum.collate, micro_batches=micro_batches),
        out=out,
        compute=compute,
        logger=logger,
        name="sft." + "+".join(tasks),
        valid=valid or None,
        valid_every_steps=math.ceil(len(curriculum.plan) / tuning.validations) if valid else None,
        gradient_clip=tuning.gradient_clip,
        precision=tuning.precision,
        seed=tuning.seed,
    )
    if tuning.activation_checkpointing:
        cast(Any, lm.model).activation_checkpointing_disable()
    save(lm if adapted is None else lm._replace(model=adapted.merge_and_unload()), out)
    budget = {"steps": len(curriculum.plan), "rows": curriculum.rows, "tokens": curriculum.tokens, "tasks": tasks}
    (out / "budget.json").write_text(json.dumps(budget))
    log.info("%s steps over %s rows of %s tokens", len(curriculum.plan), curriculum.rows, curriculum.tokens)


def _loaded(folder: Path, tuning: Tuning, *, compile: bool) -> tuple[AdLM, PeftModel | None]:
    """The model, ready to be trained, and its adapters where there are some."""
    lm = load_to_train(folder, tuning.precision)
    if tuning.activation_checkpointing:
        cast(Any, lm.model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if tuning.dropout:
        drop_out(lm.model, tuning.dropout)
    if compile:
        lm.model.base_model.compile(dynamic=True)
    lora = tuning.lora
    if lora is None:
        return lm, None
    return lm, adapt(
        lm, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, soft_tokens=not tuning.freeze_soft_tokens
    )


def _module(lm: AdLM, catalog: Path, tuning: Tuning) -> Tuner:
    levels = json.loads((catalog / "tokens.json").read_text())["levels"]
    return Tuner(
        lm.model,
        catalog=TrieSupport(trie.load(catalog / "trie.safetensors"), sid_tokens(lm.sid_offsets, levels)),
        support=tuning.support,
        learning_rate=tuning.learning_rate,
        min_learning_rate=tuning.min_learning_rate,
        warmup_share=tuning.warmup_share,
        weight_decay=tuning.weight_decay,
        beam_width=tuning.valid_beam_width,
        ks=[k for k in VALID_KS if k <= tuning.valid_beam_width],
        frozen=lm.soft_ids if tuning.freeze_soft_tokens and tuning.lora is None else (),
    )


def _check_frozen(lm: AdLM, compute: ComputeConfig) -> None:
    if not lm.soft_ids:
        raise ValueError(
            "sft.tuning.freeze_soft_tokens is true, but the model has no learnable token: set prompts.soft_tokens "
            "above 0"
        )
    if compute.strategy == "fsdp":
        raise ValueError(
            "sft.tuning.freeze_soft_tokens is true and compute.strategy is 'fsdp', which leaves no device with whole "
            "rows to hold still: use compute.strategy=ddp"
        )


class _Curriculum(NamedTuple):
    """What a stage is tuned on.

    Attributes:
        plan: The groups of rows of each optimizer step.
        collate: Makes a batch of groups.
        rows: Rows seen in all.
        tokens: Tokens that the model reads in all, without padding; what a tree shares counts once.
    """

    plan: list[Ints]
    collate: Callable[[Ints, Ints], Batch]
    rows: int
    tokens: int


def _curriculum(tokens: Path, tasks: Mapping[str, float], tuning: Tuning, *, most: int) -> _Curriculum:
    """The stage's batches; a tree has at most as many rows as a device reads at once, so that its part is one."""
    parts = {task: _train_rows(tokens, task) for task in tasks}
    groups = {
        task: alike(part.ids, part.offsets, most=most) if tuning.share_history else alone(part.offsets)
        for task, part in parts.items()
    }
    plan = mixed_plan(groups, tasks, batch_size=tuning.batch_size, seed=tuning.seed)
    rows = concatenate(list(parts.values()))
    sizes, lengths = (np.concatenate([getattr(of, name) for of in groups.values()]) for name in ("sizes", "lengths"))
    begins = np.concatenate([[0], np.cumsum(sizes)])
    learned = num_learned(rows, begins, loss_on=tuning.loss_on)
    make = partial(collate, rows, begins, learned, loss_on=tuning.loss_on)
    seen = np.concatenate(plan)
    return _Curriculum(plan, make, rows=int(sizes[seen].sum()), tokens=int(lengths[seen].sum()))


def _train_rows(tokens: Path, task: str) -> Rows:
    path = tokens / f"{task}.train.safetensors"
    if not path.exists():
        needed = "prompts.next_n_control to a seed" if task == "next_n_control" else "prompts.next_n above 1"
        raise ValueError(f"sft.stages names the task {task}, but there are no pairs of it: set {needed}")
    return read_rows(path)


def _valid_batches(path: Path, tuning: Tuning) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A fixed random sample of validation prompts in batches of like length: ids and mask (left-padded), targets."""
    if not tuning.validations:
        return []
    rows = read_rows(path)
    chosen = np.random.default_rng(tuning.seed).permutation(len(rows.targets))[: tuning.valid_users]
    chosen = chosen[np.argsort(rows.lengths[chosen], kind="stable")]
    parts = [chosen[start : start + VALID_BATCH] for start in range(0, len(chosen), VALID_BATCH)]
    targets = torch.from_numpy(rows.targets.astype(np.int64))
    return [(*left_padded(prompts_of(rows, part)), targets[part]) for part in parts]
