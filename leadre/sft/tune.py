"""One stage of the curriculum: a tuned model out of a model and token rows."""

import json
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.catalog import trie
from leadre.decoding.beam_search import sid_tokens
from leadre.lm.encode import RESPONSE
from leadre.lm.model import load, save
from leadre.sft.batches import Rows, collate, concatenate, mixed_plan, read_rows
from leadre.sft.config import Stage
from leadre.sft.lora import adapt
from leadre.sft.module import Tuner
from leadre.training.batches import Batches
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.fit import fit

VERSION = 1
VALID_KS = (1, 4, 8)
log = logging.getLogger(__name__)


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
        ValueError: If there are no pairs of a task.
    """
    tuning = config.tuning
    torch.manual_seed(tuning.seed)  # the start of LoRA's adapters
    lm = load(model)
    # The optimizer's small steps would be rounded away in bfloat16 weights, unless that is asked for.
    lm.model.to(torch.bfloat16 if tuning.precision == "bf16-true" else torch.float32)  # type: ignore[arg-type]
    lora = tuning.lora
    adapted = adapt(lm, rank=lora.rank, alpha=lora.alpha, targets=lora.targets) if lora is not None else None
    tasks = {str(task): epochs for task, epochs in sorted(config.tasks.items())}  # the key knows no order either
    parts = {task: _train_rows(tokens, task) for task in tasks}
    rows = concatenate(list(parts.values()))
    plan = mixed_plan(
        {task: part.lengths for task, part in parts.items()},
        tasks,
        batch_size=tuning.batch_size,
        seed=tuning.seed,
    )
    levels = json.loads((catalog / "tokens.json").read_text())["levels"]
    module = Tuner(
        lm.model,
        trie=trie.load(catalog / "trie.safetensors"),
        sid_tokens=sid_tokens(lm.sid_offsets, levels),
        learning_rate=tuning.learning_rate,
        min_learning_rate=tuning.min_learning_rate,
        warmup_share=tuning.warmup_share,
        weight_decay=tuning.weight_decay,
        beam_width=tuning.valid_beam_width,
        seed=tuning.seed,
        ks=[k for k in VALID_KS if k <= tuning.valid_beam_width],
    )
    valid = _valid_batches(read_rows(tokens / "main.valid.safetensors"), tuning.valid_users, seed=tuning.seed)
    fit(
        module,
        Batches(plan, lambda which: collate(rows, which, loss_on=tuning.loss_on)),
        out=out,
        compute=compute,
        logger=logger,
        name="sft." + "+".join(tasks),
        valid=valid if tuning.validations and valid else None,
        valid_every_steps=-(-len(plan) // tuning.validations) if tuning.validations and valid else None,
        gradient_clip=tuning.gradient_clip,
        precision=tuning.precision,
    )
    save(lm if adapted is None else lm._replace(model=adapted.merge_and_unload()), out)
    seen = int(sum(rows.lengths[batch].sum() for batch in plan))
    (out / "budget.json").write_text(json.dumps({"steps": len(plan), "tokens": seen, "tasks": tasks}))
    log.info("%s steps over %s tokens", len(plan), seen)


def _train_rows(tokens: Path, task: str) -> Rows:
    path = tokens / f"{task}.train.safetensors"
    if not path.exists():
        needed = "prompts.next_n_control to a seed" if task == "next_n_control" else "prompts.next_n above 1"
        raise ValueError(f"sft.stages names the task {task}, but there are no pairs of it: set {needed}")
    return read_rows(path)


def _valid_batches(rows: Rows, num_users: int, *, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A fixed random sample of validation prompts in batches of like length: ids and mask (left-padded), targets."""
    chosen = np.random.default_rng(seed).permutation(len(rows.targets))[:num_users]
    chosen = chosen[np.argsort(rows.lengths[chosen], kind="stable")]
    return [_prompts(rows, chosen[start : start + 32]) for start in range(0, len(chosen), 32)]


def _prompts(rows: Rows, which: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    texts = [_prompt(rows, row) for row in which]
    width = max(map(len, texts))
    ids = np.zeros((len(which), width), dtype=np.int64)
    mask = np.zeros((len(which), width), dtype=bool)
    for i, text in enumerate(texts):
        ids[i, width - len(text) :] = text
        mask[i, width - len(text) :] = True
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(rows.targets[which].astype(np.int64))


def _prompt(rows: Rows, row: int) -> NDArray[np.int32]:
    part = slice(rows.offsets[row], rows.offsets[row + 1])
    prompt: NDArray[np.int32] = rows.ids[part][rows.kinds[part] != RESPONSE]
    return prompt
