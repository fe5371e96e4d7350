import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from leadre.catalog import trie
from leadre.lm.model import AdLM, load, save
from leadre.lm.rows import read_rows
from leadre.sft import tune as stage
from leadre.sft.config import Lora, Stage, Tuning
from leadre.sft.module import Tuner
from leadre.sft.tune import tune
from leadre.training.logs import read_metrics
from tests.small_model import small_model

SIDS = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 1]])
TEXT, LEVELS = 6, [3, 2]  # tokens 0..5 are text; 6, 7, 8 are <a_0> <a_1> <a_2>; 9, 10 are <b_0> <b_1>
TUNING = Tuning(
    loss_on="response",
    support="vocab",
    learning_rate=0.02,
    min_learning_rate=0.002,
    warmup_share=0.1,
    weight_decay=0.0,
    batch_size=4,
    micro_batch_size=None,
    share_history=False,
    activation_checkpointing=False,
    gradient_clip=1.0,
    precision="32-true",
    lora=None,
    dropout=0.0,
    freeze_soft_tokens=False,
    validations=2,
    valid_users=8,
    valid_beam_width=4,
    seed=0,
)


def _sid_tokens(sid):
    return [TEXT + int(sid[0]), TEXT + LEVELS[0] + int(sid[1])]


def _tokens(folder, name, num_rows, seed, ads=1):
    """Prompts of one telling text token among others; the response is that token's ad, then the next but one."""
    rng = np.random.default_rng(seed)
    ids, kinds, offsets, targets = [], [], [0], []
    for _ in range(num_rows):
        target = int(rng.integers(len(SIDS)))
        noise = [5] * int(rng.integers(1, 4))
        named = [SIDS[(target + 2 * step) % len(SIDS)] for step in range(ads)]
        ids += [*noise, target, *(token for sid in named for token in _sid_tokens(sid))]
        kinds += [0] * (len(noise) + 1) + [2, 2] * ads
        offsets.append(len(ids))
        targets.append(target)
    arrays = {
        "ids": np.int32(ids),
        "kinds": np.uint8(kinds),
        "offsets": np.int64(offsets),
        "targets": np.int32(targets),
    }
    save_arrays(arrays, folder / f"{name}.safetensors")


@pytest.fixture
def folders(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    for name in ("model", "catalog", "tokens"):
        (tmp_path / name).mkdir()
    save(AdLM(small_model(TEXT + sum(LEVELS), layers=1), tokenizer, (6, 9), (5,)), tmp_path / "model")
    trie.save(trie.build(SIDS), tmp_path / "catalog" / "trie.safetensors")
    (tmp_path / "catalog" / "tokens.json").write_text(json.dumps({"levels": LEVELS, "tokens": []}))
    _tokens(tmp_path / "tokens", "main.train", 40, seed=1)
    _tokens(tmp_path / "tokens", "main.valid", 10, seed=2)
    _tokens(tmp_path / "tokens", "next_n.train", 40, seed=3, ads=2)
    return [tmp_path / name for name in ("model", "catalog", "tokens")]


def _tune(folders, out, compute, logger, tasks=None, **changes):
    out.mkdir(exist_ok=True)
    stage = Stage(tasks=tasks or {"main": 6.0}, tuning=replace(TUNING, **changes))
    tune(stage, *folders, out=out, compute=compute, logger=logger)
    return load(out).model.state_dict()


def test_a_tuned_model_ranks_the_true_ad_first(tmp_path, folders, compute, logger):
    _tune(folders, tmp_path / "out", compute, logger)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.1 * losses[0]
    valid = [row for row in rows if "valid/hr@1" in row]
    assert valid[-1]["step"] == 60
    assert (valid[-1]["valid/hr@1"], valid[-1]["valid/hr@4"], valid[-1]["valid/ndcg@4"]) == (1.0, 1.0, 1.0)


def test_a_model_tuned_among_the_codes_that_lead_to_an_ad_ranks_the_true_ad_first_too(
    tmp_path, folders, compute, logger
):
    _tune(folders, tmp_path / "out", compute, logger, support="trie")
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert next(row["train/loss"] for row in rows if "train/loss" in row) < np.log(len(SIDS)) / 2 + 0.2  # of two codes
    assert [row["valid/hr@1"] for row in rows if "valid/hr@1" in row][-1] == 1.0


def test_a_model_tuned_on_several_ads_knows_the_first_and_those_that_follow_it(tmp_path, folders, compute, logger):
    _tune(folders, tmp_path / "out", compute, logger, tasks={"next_n": 8.0})
    logged = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["valid/hr@1"] for row in logged if "valid/hr@1" in row][-1] == 1.0
    model = load(tmp_path / "out").model.eval()
    for target in range(len(SIDS)):
        ids = [5, target]
        for sid in (SIDS[target], SIDS[(target + 2) % len(SIDS)]):
            for token in _sid_tokens(sid):  # greedily, one token after the other
                assert model(torch.tensor([ids])).logits[0, -1].argmax() == token
                ids.append(token)


def test_tasks_of_one_and_of_several_ads_mix_in_a_stage(tmp_path, folders, compute, logger):
    _tune(folders, tmp_path / "out", compute, logger, tasks={"main": 1.0, "next_n": 0.5}, validations=0)
    budget = json.loads((tmp_path / "out" / "budget.json").read_text())
    assert budget["tasks"] == {"main": 1.0, "next_n": 0.5}
    assert budget["steps"] == 15
    assert 40 * 4 + 20 * 6 <= budget["tokens"] <= 40 * 6 + 20 * 8


@pytest.mark.parametrize(
    ("task", "remedy"),
    [("next_n", "prompts.next_n above 1"), ("next_n_control", "prompts.next_n_control to a seed")],
)
def test_a_task_without_pairs_is_refused_with_the_setting_that_makes_them(
    tmp_path, folders, compute, logger, task, remedy
):
    (folders[2] / "next_n.train.safetensors").unlink()
    with pytest.raises(ValueError, match=f"names the task {task}, but there are no pairs of it: set {remedy}$"):
        _tune(folders, tmp_path / "out", compute, logger, tasks={task: 1.0})


@pytest.mark.parametrize(("task", "num_tokens"), [("main", 2), ("next_n", 4)])
def test_the_first_loss_is_that_of_the_plain_full_logits(tmp_path, folders, compute, logger, task, num_tokens):
    _tune(folders, tmp_path / "out", compute, logger, batch_size=40, tasks={task: 1.0}, validations=0)
    lm = load(folders[0])
    losses = []
    rows = read_rows(folders[2] / f"{task}.train.safetensors")
    for begin, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        ids = torch.from_numpy(rows.ids[begin:end].astype(np.int64))[None]
        logprobs = lm.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        losses += logprobs[-num_tokens:].flatten().tolist()
    logged = read_metrics(tmp_path / "out" / "metrics.jsonl")[0]["train/loss"]
    assert logged == pytest.approx(-np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_stage_that_was_killed_ends_with_the_same_weights(tmp_path, folders, compute, logger, monkeypatch, dropout):
    whole = _tune(folders, tmp_path / "whole", compute, logger, dropout=dropout)
    plain = Tuner.training_step

    def dies(self, batch):
        if self.global_step == 32:
            raise RuntimeError("killed")
        return plain(self, batch)

    monkeypatch.setattr(Tuner, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        _tune(folders, tmp_path / "killed", compute, logger, dropout=dropout)
    monkeypatch.setattr(Tuner, "training_step", plain)
    resumed = _tune(folders, tmp_path / "killed", compute, logger, dropout=dropout)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "killed" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_lora_trains_adapters_and_new_rows_and_leaves_a_plain_tied_model(tmp_path, folders, compute, logger):
    before = load(folders[0]).model.state_dict()
    lora = Lora(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
    after = _tune(folders, tmp_path / "out", compute, logger, lora=lora)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(after) == set(before)
    assert changed == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
    }
    assert torch.equal(after["model.embed_tokens.weight"][:5], before["model.embed_tokens.weight"][:5])
    assert torch.equal(after["model.embed_tokens.weight"], after["lm_head.weight"])


def test_lora_on_layers_that_are_not_there_is_refused(tmp_path, folders, compute, logger):
    lora = Lora(rank=4, alpha=8.0, targets=("q_proj", "query"))
    with pytest.raises(ValueError, match=r"sft\.tuning\.lora\.targets names \['query'\].*choose from .*'q_proj'"):
        _tune(folders, tmp_path / "out", compute, logger, lora=lora)


def test_what_a_stage_has_seen_is_written_down(tmp_path, folders, compute, logger):
    _tune(folders, tmp_path / "out", compute, logger, tasks={"main": 1.5}, validations=0)
    budget = json.loads((tmp_path / "out" / "budget.json").read_text())
    assert budget["tasks"] == {"main": 1.5}
    assert budget["steps"] == 16
    assert 60 * 4 <= budget["tokens"] <= 60 * 6


def _first_steps(out):
    return [row["train/loss"] for row in read_metrics(out / "metrics.jsonl") if "train/loss" in row]


def test_dropout_draws_anew_in_each_step_and_the_same_for_a_seed(tmp_path, folders, compute, logger):
    losses = {}
    for name, changes in {"plain": {}, "one": {"dropout": 0.3}, "two": {"dropout": 0.3}}.items():
        _tune(
            folders,
            tmp_path / name,
            compute,
            logger,
            tasks={"main": 1.0},
            validations=0,
            learning_rate=1e-9,
            min_learning_rate=0.0,
            **changes,
        )
        losses[name] = _first_steps(tmp_path / name)
    assert losses["one"] == losses["two"]
    apart = np.array(losses["one"]) - np.array(losses["plain"])  # the weights hardly move: what differs was drawn
    assert len(np.unique(apart.round(5))) == len(apart)


@pytest.mark.parametrize(
    "changes", [{"activation_checkpointing": True}, {"micro_batch_size": 2}, {"micro_batch_size": 3}]
)
def test_what_saves_memory_changes_neither_losses_nor_weights(tmp_path, folders, compute, logger, changes):
    plain = _tune(folders, tmp_path / "plain", compute, logger, tasks={"main": 2.3}, validations=0)
    saved = _tune(folders, tmp_path / "saved", compute, logger, tasks={"main": 2.3}, validations=0, **changes)
    assert _first_steps(tmp_path / "saved") == pytest.approx(_first_steps(tmp_path / "plain"), rel=1e-5)
    for name, weight in plain.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-4, atol=1e-5)
    assert load(tmp_path / "saved").model.is_activation_checkpointing is False


def test_stages_may_repeat_and_each_starts_from_the_one_before(tmp_path, folders, compute, logger):
    once = _tune(folders, tmp_path / "once", compute, logger, tasks={"main": 1.0}, validations=0)
    twice = _tune([tmp_path / "once", *folders[1:]], tmp_path / "twice", compute, logger, {"main": 1.0}, validations=0)
    assert not torch.equal(once["model.embed_tokens.weight"], twice["model.embed_tokens.weight"])
    assert _first_steps(tmp_path / "twice")[0] < _first_steps(tmp_path / "once")[0]


def test_rows_that_begin_alike_are_read_once_and_counted_in_the_budget(tmp_path, folders, compute, logger):
    plain = _tune(folders, tmp_path / "plain", compute, logger, tasks={"main": 1.0}, validations=0)
    shared = _tune(folders, tmp_path / "shared", compute, logger, {"main": 1.0}, validations=0, share_history=True)
    budgets = [json.loads((tmp_path / name / "budget.json").read_text()) for name in ("plain", "shared")]
    assert budgets[0]["rows"] == budgets[1]["rows"] == 40
    assert budgets[1]["tokens"] < budgets[0]["tokens"]
    assert set(plain) == set(shared)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_a_compiled_model_has_the_losses_of_the_plain_one(tmp_path, folders, compute, logger):
    _tune(folders, tmp_path / "plain", compute, logger, tasks={"main": 1.0}, validations=1)
    _tune(folders, tmp_path / "fast", replace(compute, compile=True), logger, tasks={"main": 1.0}, validations=1)
    assert _first_steps(tmp_path / "fast") == pytest.approx(_first_steps(tmp_path / "plain"), rel=1e-5)


def test_no_device_reads_more_rows_at_once_than_asked_where_histories_are_shared(tmp_path, folders):
    tuning = replace(TUNING, share_history=True, batch_size=8, micro_batch_size=2)
    curriculum = stage._curriculum(folders[2], {"main": 1.0}, tuning, most=2)
    groups = curriculum.collate.args[1]
    assert np.diff(groups).max() <= 2
    assert sum(len(which) for which in curriculum.plan) < curriculum.rows == 40  # some rows share a tree


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0, targets=("q_proj",))])
def test_a_frozen_learnable_token_stays_as_it_was_drawn_whatever_else_is_learned(
    tmp_path, folders, compute, logger, lora
):
    before = load(folders[0]).model.get_input_embeddings().weight.detach().clone()
    changes = {"lora": lora, "weight_decay": 0.5}
    learned, frozen = (
        _tune(folders, tmp_path / str(freeze), compute, logger, freeze_soft_tokens=freeze, **changes)[
            "model.embed_tokens.weight"
        ]
        for freeze in (False, True)
    )
    assert torch.equal(frozen[5], before[5])
    assert not torch.equal(learned[5], before[5])
    assert not torch.equal(frozen[6:], before[6:])


def test_tokens_cannot_be_frozen_where_there_are_none_or_weights_are_shared_out(tmp_path, folders, compute, logger):
    with pytest.raises(ValueError, match=r"freeze_soft_tokens is true and compute\.strategy is 'fsdp'.*strategy=ddp"):
        _tune(folders, tmp_path / "out", replace(compute, strategy="fsdp"), logger, freeze_soft_tokens=True)
    about = json.loads((folders[0] / "leadre.json").read_text())
    (folders[0] / "leadre.json").write_text(json.dumps(about | {"soft_ids": []}))
    with pytest.raises(ValueError, match=r"has no learnable token: set prompts\.soft_tokens above 0"):
        _tune(folders, tmp_path / "out", compute, logger, freeze_soft_tokens=True)
