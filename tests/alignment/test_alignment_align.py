"""The whole stage on a toy world, its resume, and the module's steps, logs and guard."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, PreTrainedTokenizerFast

from leadre import tables
from leadre.alignment import align as verb
from leadre.alignment import methods
from leadre.alignment.align import align
from leadre.alignment.config import AlignmentConfig, NoAlignment
from leadre.alignment.module import MEMORY, Aligner
from leadre.alignment.reference import reference_logprobs, stored_logprobs
from leadre.alignment.rows import PreferenceRows
from leadre.artifacts import Result, Store
from leadre.catalog import trie
from leadre.lm.logprob import TrieSupport, answer_logprobs
from leadre.lm.model import AdLM, load, save
from leadre.training.batches import Batches, shuffled_plan
from leadre.training.config import ComputeConfig, FileLogs
from leadre.training.fit import fit
from leadre.training.logs import read_metrics

OFFSETS = (20, 24, 28)
LEVELS = (4, 4, 1)
ADS = [(a, b, 0) for a in range(4) for b in range(4)]
CODES = TrieSupport(
    trie.build(torch.tensor(ADS)), [range(first, first + size) for first, size in zip(OFFSETS, LEVELS, strict=True)]
)
STEP = {"learning_rate": 3e-3, "min_learning_rate": 3e-4, "warmup_share": 0.1, "weight_decay": 0.0}
METHODS = {
    "dpo": (partial(methods.dpo, beta=0.1, label_smoothing=0.0, sft_weight=0.1), 0.1),
    "cdpo": (partial(methods.dpo, beta=0.1, label_smoothing=0.1, sft_weight=0.1), 0.1),
    "ipo": (partial(methods.ipo, beta=0.25, sft_weight=1.0), 0.25),
    "sdpo": (partial(methods.sdpo, beta=0.1, sft_weight=0.1), 0.1),
    "rrhf": (partial(methods.rrhf, sft_weight=1.0), 1.0),
    "rrhf_official": (partial(methods.rrhf_official, sft_weight=1.0), 1.0),
    "sft": (methods.sft_on_chosen, 1.0),
}
OWN = {
    "dpo": {"loss": "sigmoid", "beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.1},
    "sdpo": {"beta": 0.1, "negatives": 2, "sft_weight": 0.1},
    "rrhf": {"variant": "paper", "sft_weight": 1.0},
    "sft": {},
}
CONFIG = {
    "support": "vocab",
    "max_chosen_drop": 2.0,
    "preferences": {
        "sources": ["log"],
        "beam_width": 4,
        "worth": "ecpm",
        "min_pctr_quantile": 0.5,
        "min_log_gap": 0.2,
        "train_targets": False,
        "max_ads_per_user": 10,
        "rejected_per_chosen": 3,
        "max_pairs_per_user": 4,
        "max_pairs_per_ad": 50,
        "max_pairs": 100,
        "control": None,
        "seed": 0,
    },
    "tuning": {
        **STEP,
        "epochs": 2,
        "batch_size": 16,
        "micro_batch_size": None,
        "gradient_clip": 1.0,
        "precision": "32-true",
        "validations": 2,
        "valid_users": 12,
        "valid_beam_width": 4,
        "seed": 0,
    },
}


def quick(names, *few):
    """Some in the default run, the others with ``-m slow``."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def compute(compute):
    """Checkpoints are only written where they are read."""
    return replace(compute, checkpoint_every_steps=1000)


def config(kind="dpo", **changes):
    return read({"kind": kind, **OWN[kind], **CONFIG, **changes})


def read(values):
    """As the run's configuration is read: through JSON, strictly."""
    return TypeAdapter(AlignmentConfig).validate_json(json.dumps(values), strict=True)


def lm(dropout=0.0):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = HunYuanDenseV1ForCausalLM(
        HunYuanDenseV1Config(
            vocab_size=32, head_dim=8, tie_word_embeddings=True, attention_dropout=dropout, pad_token_id=0, **shape
        )
    )
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return AdLM(model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), OFFSETS, ())


def toy_rows(num_rows=64, rejected=1):
    """The chosen ad starts with code 1 or 3, the rejected ones with 0 or 2; prompts are noise."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, num_rows)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    first = rng.integers(0, 2, (num_rows, 1 + rejected)) * 2 + np.array([1] + rejected * [0])
    codes = np.stack([first, rng.integers(0, 4, first.shape), np.zeros_like(first)], axis=2)
    return PreferenceRows(
        ids=rng.integers(1, 20, lengths.sum()).astype(np.int32),
        starts=starts,
        lengths=lengths,
        answers=codes + np.array(OFFSETS),
        reference=np.full(first.shape, np.nan, dtype=np.float32),
    )


def with_reference(model, rows, support=None):
    ask = {"batch_size": 7, "device": torch.device("cpu"), "autocast": False}
    return rows._replace(reference=reference_logprobs(model, rows, support=support, **ask))


def aligner(model, method="dpo", *, valid=(), measure=None, **changes):
    loss, scale = METHODS[method]
    settings = {"support": "vocab", "max_chosen_drop": 2.0, "batch_size": 16, **STEP} | changes
    return Aligner(
        model, loss=loss, reward_scale=scale, catalog=CODES, valid=valid, measure=measure, beam_width=4, **settings
    )


def trained(module, rows, out, compute, logger, epochs=6, **more):
    out.mkdir(exist_ok=True)
    train = Batches(shuffled_plan(len(rows.lengths), batch_size=16, epochs=epochs, seed=0), rows.batch)
    fit(module, train, out=out, compute=compute, logger=logger, name="toy", **more)
    return read_metrics(out / "metrics.jsonl")


# the reference


@pytest.mark.parametrize("support", [None, CODES])
def test_the_reference_is_the_models_own_log_prob_row_by_row(support):
    rows, model = toy_rows(20, rejected=2), lm().model
    rows.answers[7, 2] = -1
    found = with_reference(model, rows, support).reference
    assert found[7, 2] == 0
    for row, answer in ((0, 0), (7, 1), (19, 2)):
        prompt = rows.ids[rows.starts[row] : rows.starts[row] + rows.lengths[row]]
        ids = torch.from_numpy(np.concatenate([prompt, rows.answers[row, answer]]))[None]
        if support is None:
            logprobs = model(ids).logits[0].log_softmax(-1)
            alone = sum(logprobs[at - 1, ids[0, at]] for at in range(len(prompt), len(prompt) + 3))
        else:  # every first code has all four second codes below it, and those one third code each
            logits = model(ids).logits[0, len(prompt) - 1 :]
            alone = sum(
                logits[at, range_.start : range_.stop].log_softmax(0)[rows.answers[row, answer, at] - range_.start]
                for at, range_ in enumerate(CODES.sid_tokens)
            )
        assert found[row, answer] == pytest.approx(alone.item(), abs=1e-5)


def test_a_stored_reference_is_read_and_not_computed_again(tmp_path):
    rows, lm_ = toy_rows(8), lm()
    ask = {"support": None, "batch_size": 4, "device": torch.device("cpu"), "autocast": False}
    first = stored_logprobs(tmp_path / "r.safetensors", lm_.model, rows, **ask)
    torch.nn.init.zeros_(lm_.model.get_input_embeddings().weight)  # a policy that has moved on
    assert np.array_equal(stored_logprobs(tmp_path / "r.safetensors", lm_.model, rows, **ask), first)
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]


# the module


@pytest.mark.parametrize("method", quick(METHODS, "ipo", "rrhf_official"))
def test_every_method_raises_the_margin_and_the_chosen_ads_likelihood(tmp_path, compute, logger, method):
    model = lm().model
    rows = with_reference(model, toy_rows(rejected=3 if method == "sdpo" else 1))
    metrics = trained(aligner(model, method), rows, tmp_path, compute, logger)
    gain = with_reference(model, rows).reference - rows.reference
    assert gain[:, 0].mean() > 0.5
    assert (gain[:, :1] > gain[:, 1:]).mean() > 0.9
    assert set(metrics[-1]) >= {
        "train/loss",
        "train/chosen_logp",
        "train/rejected_logp",
        "train/chosen_drop",
        "train/reward_margin",
        "train/reward_accuracy",
        "train/margin@0",
    }
    assert "train/prefix_mass" not in metrics[-1]  # no pair shares a code here
    assert metrics[0]["train/reward_margin"] == pytest.approx(0, abs=1e-5)
    assert metrics[-1]["train/reward_margin"] > 0
    assert metrics[-1]["train/reward_accuracy"] > 0.8
    assert metrics[-1]["train/chosen_drop"] < 0


def test_the_first_loss_is_log_2_plus_the_likelihood_term(tmp_path, compute, logger):
    model = lm().model
    rows = with_reference(model, toy_rows())
    first = trained(aligner(model), rows, tmp_path, compute, logger, epochs=1)[0]
    assert first["train/loss"] == pytest.approx(np.log(2) - 0.1 * first["train/chosen_logp"], abs=1e-5)


@pytest.mark.slow
def test_sdpo_with_one_rejected_ad_trains_as_dpo_does(tmp_path, compute, logger):
    weights = []
    for method in ("dpo", "sdpo"):
        model = lm().model
        trained(aligner(model, method), with_reference(model, toy_rows()), tmp_path / method, compute, logger, epochs=1)
        weights.append(model.get_input_embeddings().weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_over_the_trie_nothing_is_learned_of_tokens_that_decoding_never_takes(tmp_path, compute, logger):
    model = lm().model
    rows = with_reference(model, toy_rows(), CODES)
    metrics = trained(aligner(model, support="trie"), rows, tmp_path, compute, logger)
    gain = with_reference(model, rows, CODES).reference - rows.reference
    assert gain[:, 0].mean() > 0.3
    assert metrics[0]["train/reward_margin"] == pytest.approx(0, abs=1e-5)
    assert metrics[0]["train/chosen_logp"] > -np.log(16) - 1  # of 16 ads, not of 32**3 texts


def test_margins_are_told_by_the_codes_that_a_pair_shares(tmp_path, compute, logger):
    model, rows = lm().model, toy_rows()
    rows.answers[::2, 1, 0] = rows.answers[::2, 0, 0]  # every other pair shares its first code
    rows.answers[::2, 1, 1] = 24 + (rows.answers[::2, 0, 1] - 23) % 4
    metrics = trained(aligner(model), with_reference(model, rows), tmp_path, compute, logger, epochs=2)
    last = metrics[-1]
    assert 0 < last["train/prefix_mass"] < 1
    assert {"train/margin@0", "train/margin@1"} <= set(last)
    assert "train/margin@2" not in last


@pytest.mark.slow
def test_dropout_is_off_in_training(tmp_path, compute, logger):
    weights = []
    for dropout in (0.0, 0.5):
        model = lm(dropout).model.train()
        rows = with_reference(model, toy_rows(16))
        trained(aligner(model.train()), rows, tmp_path / str(dropout), compute, logger, epochs=1)
        weights.append(model.get_input_embeddings().weight.detach())
    assert torch.equal(*weights)


def test_micro_batches_make_the_same_step(tmp_path, compute, logger):
    """What Lightning does with them, by hand: the mean of the micro-batches' gradients."""
    model = lm().model
    rows = with_reference(model, toy_rows(10))
    whole, grads = np.arange(10), []
    for parts in ([whole], [whole[::2], whole[1::2]], [whole[:0], whole]):
        model.zero_grad()
        for part in parts:
            batch = rows.batch(part, whole)
            logprobs = answer_logprobs(model, batch.prompts, batch.lengths, batch.answers)
            (batch.weights @ METHODS["dpo"][0](logprobs, batch)).backward()
        grads.append(model.get_input_embeddings().weight.grad.clone())
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-4, atol=1e-6)


def test_autocast_rounds_neither_the_loss_nor_what_is_told_of_it(tmp_path, compute, logger, monkeypatch):
    model, step, returned = lm().model, Aligner.training_step, []
    module = aligner(model)
    module.loss = lambda logprobs, batch: 0 * logprobs.sum((1, 2)) + 1.001  # 1 in bfloat16

    def watched(self, batch):
        returned.append(step(self, batch))
        return returned[-1]

    monkeypatch.setattr(Aligner, "training_step", watched)
    rows = with_reference(model, toy_rows())
    rows = rows._replace(reference=rows.reference + 1.001)
    told = trained(module, rows, tmp_path, compute, logger, epochs=1, precision="bf16-mixed")
    assert [loss.item() for loss in returned] == pytest.approx([1.001] * 4, abs=1e-6)
    assert [row["train/loss"] for row in told] == pytest.approx([1.001] * 4, abs=1e-6)


# the guard


@pytest.mark.parametrize("method", quick(METHODS, "dpo"))
def test_training_stops_when_the_chosen_ads_become_unlikely(tmp_path, compute, logger, method):
    model = lm().model
    rows = with_reference(model, toy_rows())
    rows = rows._replace(reference=rows.reference + 3)  # as if the policy had lost three nats
    told = r"max_chosen_drop is 2.0, but at step 0 .* 3 nats below .* lower tuning.learning_rate, or raise sft_weight"
    with pytest.raises(ValueError, match=told):
        trained(aligner(model, method), rows, tmp_path, compute, logger)


def test_what_is_not_a_number_is_told_as_that_and_not_as_a_fall(tmp_path, compute, logger):
    with pytest.raises(ValueError, match="at step 1 the loss is nan"):
        trained(aligner(lm().model), toy_rows(), tmp_path, compute, logger)  # no reference


def test_a_training_that_unlearns_the_chosen_ads_is_stopped_on_its_way(tmp_path, compute, logger):
    model = lm().model
    module = aligner(model, max_chosen_drop=0.05)
    module.loss = lambda logprobs, batch: logprobs[:, 0].sum(-1)  # downhill is away from them
    with pytest.raises(ValueError, match=r"max_chosen_drop is 0.05, but at step [1-9]\d* "):
        trained(module, with_reference(model, toy_rows()), tmp_path, compute, logger)


def drops(module, values, batch_size=16):
    """What the guard looks at after each of some batches whose chosen ads lie so many nats below."""
    return [module.remember([value * batch_size] * 5, [batch_size] * 5)["chosen_drop"] for value in values]


def test_one_small_batch_does_not_stop_a_training_and_a_lasting_fall_does():
    rng = np.random.default_rng(0)
    quiet = rng.normal(0.0, 2.0 / np.sqrt(4), 500)  # batches of 4 rows that scatter by 2 nats each, around no drop
    small = aligner(lm().model, batch_size=4)
    assert max(quiet) > 2.0
    assert max(np.abs(drops(small, quiet, 4)[20:])) < 1.0
    fallen = drops(small, [3.0] * 200, 4)
    assert fallen[10] < 2.0 < fallen[-1]
    assert aligner(lm().model, batch_size=MEMORY).keep == aligner(lm().model, batch_size=2 * MEMORY).keep == 0


def test_the_running_mean_weighs_rows_and_knows_its_beginning():
    module = aligner(lm().model, batch_size=128)
    assert drops(module, [1.0, 3.0], 128) == pytest.approx([1.0, (0.5 * 1 + 3) / 1.5])


# validation


def test_lists_are_measured_before_the_first_step_in_between_and_at_the_end(tmp_path, compute, logger):
    model, seen = lm().model, []
    prompts = [
        (torch.tensor([[0, 4], [7, 5]]), torch.tensor([[False, True], [True, True]])),
        *[(torch.ones(1, 1).long(),) * 2],
    ]

    def measure(lists):
        seen.append(lists)
        return {"hr@4": float(len(seen))}

    module = aligner(model, valid=prompts, measure=measure)
    rows = with_reference(model, toy_rows())
    metrics = trained(module, rows, tmp_path, compute, logger, epochs=1, valid=prompts, valid_every_steps=3)
    assert [(row["step"], row["valid/hr@4"]) for row in metrics if "valid/hr@4" in row] == [(0, 1), (3, 2), (4, 3)]
    assert all(lists.shape == (3, 4) and lists.min() >= 0 for lists in seen)
    assert not model.training


# the stage


FOLDERS = ("model", "world", "catalog", "pairs", "tokens", "ltr", "preferences")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    make_inputs(root)
    return {name: root / name for name in FOLDERS}


def make_inputs(root):
    """Folders of a stage's inputs: 20 users with 3 targets (train, valid, test), and 2 to 4 pairs each."""
    rng = np.random.default_rng(1)
    names = [f"ad{i:02}" for i in range(16)]
    split, samples, preferences, labels = [], [], [], []
    for n in range(20):
        user, picks = f"u{n:02}", rng.permutation(16)
        split += [(user, role, names[picks[i]], 10 * (i + 1)) for i, role in enumerate(("train", "valid", "test"))]
        samples.append([*rng.integers(1, 20, rng.integers(2, 9)), *(np.array(ADS[picks[1]]) + OFFSETS)])
        chosen = sorted(picks[3:5])
        for better in chosen:
            for worse in sorted(picks[5 : 5 + 1 + n % 2]):
                shared = int(np.cumprod(np.equal(ADS[better], ADS[worse])).sum())
                preferences.append((user, names[better], names[worse], 2.0, 1.0, "click", "shown", shared))
        labels += [(user, rank + 1, names[pick], 1.0) for rank, pick in enumerate(picks[:5])] if n % 2 else []
    folders = {name: root / name for name in FOLDERS}
    for folder in folders.values():
        folder.mkdir()
    save(lm(), folders["model"])
    write(tables.SPLIT, split, folders["world"])
    write(tables.SIDS, [(name, list(sid), "") for name, sid in zip(names, ADS, strict=True)], folders["catalog"])
    trie.save(CODES.trie, folders["catalog"] / "trie.safetensors")
    (folders["catalog"] / "tokens.json").write_text(json.dumps({"levels": LEVELS}))
    write(tables.LISTS, labels, folders["ltr"], "valid_labels")
    write(tables.PREFERENCES, preferences, folders["preferences"])
    kinds = [[0] * (len(sample) - 3) + [2] * 3 for sample in samples]
    arrays = {
        "ids": np.concatenate(samples).astype(np.int32),
        "kinds": np.concatenate(kinds).astype(np.uint8),
        "offsets": np.cumsum([0, *map(len, samples)]).astype(np.int64),
        "targets": np.array([names.index(split[3 * n + 1][2]) for n in range(20)], dtype=np.int32),
    }
    for role in ("train", "valid"):
        pairs = [(f"u{n:02}", "ad00", [], [], [], [], []) for n in range(20)]
        write(tables.PAIRS, pairs, folders["pairs"], f"main.{role}")
        save_file(arrays, folders["tokens"] / f"main.{role}.safetensors")


def write(table, rows, folder, name=None):
    frame = pl.DataFrame(rows, schema=table.schema, orient="row")
    tables.write(table, frame, folder / f"{name or table.name}.parquet")


@pytest.fixture(autouse=True, scope="module")
def _a_ranker_that_knows_prices():
    """Ad n is worth n, whoever looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "_ecpms", prices)
        yield


def prices(ltr, world):
    return lambda users, ads: np.tile([float(ad[2:]) for ad in ads], (users.height, 1))


def aligned(inputs, out, compute, logger, kind="dpo", **changes):
    out.mkdir(exist_ok=True)
    align(config(kind, **changes), **inputs, out=out, compute=compute, logger=logger)
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def whole(inputs, compute, logger, tmp_path_factory):
    """The folder of an unbroken alignment of a kind, and its weights."""

    @cache
    def whole(kind):
        out = tmp_path_factory.mktemp(kind)
        return out, aligned(inputs, out, compute, logger, kind)

    return whole


@pytest.mark.parametrize("kind", quick(OWN, "sdpo", "sft"))
def test_the_stage_writes_a_model_that_prefers_the_chosen_ads(whole, kind):
    out, _ = whole(kind)
    assert load(out).sid_offsets == OFFSETS
    metrics = read_metrics(out / "metrics.jsonl")
    trains = [row for row in metrics if "train/reward_margin" in row]
    assert trains[-1]["train/reward_margin"] > trains[0]["train/reward_margin"] == pytest.approx(0, abs=1e-5)
    valids = [row for row in metrics if "valid/hr@4" in row]
    assert [row["step"] for row in valids] == [0, 4, 8]
    assert set(valids[0]) == {"step"} | {
        f"valid/{name}@{k}" for name in ("hr", "ndcg", "ltrr", "value") for k in (1, 4)
    }
    assert 0 < valids[0]["valid/value@4"] < 15
    reference = load_file(out / "reference.safetensors")["logprobs"]
    assert reference.shape == ((40, 3) if kind == "sdpo" else (60, 2))


@pytest.mark.slow
def test_all_methods_have_the_same_pairs_and_steps(whole):
    budgets = {kind: json.loads((whole(kind)[0] / "budget.json").read_text()) for kind in OWN}
    assert {(budget["pairs"], budget["steps"]) for budget in budgets.values()} == {(60, 8)}
    assert [budgets[kind]["rows"] for kind in OWN] == [60, 40, 60, 60]


@pytest.mark.parametrize("precision", quick(["bf16-mixed", "bf16-true"], "bf16-true"))
def test_the_reference_is_taken_in_the_precision_of_training(tmp_path, inputs, compute, logger, precision):
    (out := tmp_path / "out").mkdir()
    tuning = CONFIG["tuning"] | {"precision": precision, "epochs": 1, "validations": 0}
    align(config(tuning=tuning), **inputs, out=out, compute=compute, logger=logger)
    first = read_metrics(out / "metrics.jsonl")[0]
    assert first["train/reward_margin"] == pytest.approx(0, abs=1e-3)
    assert load(out).model.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


@pytest.mark.parametrize("kind", quick(OWN, "sdpo"))
def test_a_killed_alignment_goes_on_to_the_same_weights(tmp_path, inputs, whole, compute, logger, monkeypatch, kind):
    out, weights = whole(kind)
    step = Aligner.training_step

    def dies(self, batch):
        if self.global_step == 5:
            raise RuntimeError("killed")
        return step(self, batch)

    monkeypatch.setattr(Aligner, "training_step", dies)
    often = replace(compute, checkpoint_every_steps=3)
    with pytest.raises(RuntimeError, match="killed"):
        aligned(inputs, tmp_path / "killed", often, logger, kind)
    monkeypatch.setattr(Aligner, "training_step", step)
    resumed = aligned(inputs, tmp_path / "killed", often, logger, kind)
    assert weights.keys() == resumed.keys()
    assert all(weights[name].tobytes() == resumed[name].tobytes() for name in weights)
    assert (out / "metrics.csv").read_text() == (tmp_path / "killed/metrics.csv").read_text()


def test_what_the_guard_stops_leaves_no_model(tmp_path, inputs, compute, logger):
    with pytest.raises(ValueError, match=r"max_chosen_drop is 1e-06, but at step \d+"):
        aligned(inputs, tmp_path / "out", compute, logger, **OWN["dpo"] | {"sft_weight": 0.0}, max_chosen_drop=1e-6)
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.slow
def test_seed_0_is_a_seed(tmp_path, inputs, whole, compute, logger):
    runs = [
        aligned(inputs, tmp_path / str(seed), compute, logger, tuning=CONFIG["tuning"] | {"seed": seed})
        for seed in (0, 1)
    ]
    first, again, other = (run["model.embed_tokens.weight"].tobytes() for run in (whole("dpo")[1], *runs))
    assert first == again != other


# several ranks


def on_ranks(root, strategy, kind, compute):
    """Align in a store of its own: the key knows nothing of the ranks."""
    inputs = [Result(name, "given", root / name, 0.0, reused=True) for name in FOLDERS]
    store, logger = Store(root / strategy), FileLogs(kind="csv")
    compute = replace(
        compute, devices=2 if strategy != "one" else 1, strategy="auto" if strategy == "one" else strategy
    )
    changes = {"tuning": CONFIG["tuning"] | {"batch_size": 13}}  # of 60 rows: the last batch of an epoch has 8 of them
    return store.make(
        "aligned", align, config(kind, **changes), *inputs, together=True, compute=compute, logger=logger
    ).path


def start_two(root, strategy, kind):
    """Run this file on two ranks, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
        environment = os.environ | address | place | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, __file__, str(root), strategy, kind]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "dpo"), ("fsdp", "sdpo")])
def test_two_ranks_align_as_one_does(tmp_path, compute, strategy, kind):
    make_inputs(tmp_path)
    start_two(tmp_path, strategy, kind)
    one = on_ranks(tmp_path, "one", kind, compute)
    (two,) = (path.parent for path in (tmp_path / strategy / "aligned").glob("*/manifest.json"))
    for expected, found in zip(*(read_metrics(out / "metrics.jsonl") for out in (one, two)), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected, found = (load(out).model.state_dict() for out in (one, two))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
    assert (one / "budget.json").read_text() == (two / "budget.json").read_text()


# the settings


def test_the_kind_tells_which_settings_apply():
    assert read({"kind": "none"}) == NoAlignment(kind="none")
    assert config("rrhf").sft_weight == 1.0
    with pytest.raises(ValidationError, match="beta"):
        config("rrhf", beta=0.1)
    with pytest.raises(ValidationError, match="label_smoothing"):
        read({"kind": "dpo", **OWN["dpo"], **CONFIG, "label_smoothing": 0.5})
    with pytest.raises(ValidationError, match="negatives"):
        config("dpo", negatives=3)
    with pytest.raises(ValidationError, match=r"negatives is 9, but preferences\.rejected_per_chosen is 3, so that"):
        config("sdpo", negatives=9)
    with pytest.raises(ValidationError, match=r"label_smoothing is 0\.1, but loss is 'ipo', which knows none"):
        config("dpo", loss="ipo", label_smoothing=0.1)


YAMLS = sorted((Path(__file__).parents[2] / "conf/alignment").glob("*.yaml"))


def test_all_methods_share_pairs_and_tuning_by_default():
    for path in YAMLS:
        lines = path.read_text().splitlines()
        own = {line.split(":")[0] for line in lines if line and line[0] not in "# "}
        assert not own & {"preferences", "tuning"}, path
        if path.stem != "none":
            inherits = {"  - preferences: default", "  - tuning: default"} <= set(lines)
            assert inherits or {"  - dpo", "  - rrhf"} & set(lines), path


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb._ecpms = prices
    here = ComputeConfig(
        accelerator="cpu",
        devices=1,
        num_nodes=1,
        strategy="auto",
        compile=False,
        threads=1,
        checkpoint_every_steps=1000,
        progress=False,
    )
    on_ranks(Path(sys.argv[1]), sys.argv[2], sys.argv[3], here)
