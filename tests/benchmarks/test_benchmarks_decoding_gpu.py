"""The benchmark for GPUs: without one it tells so and succeeds; its measurements run on a CPU when all is tiny."""

import json
from functools import partial

import pytest
import torch

from benchmarks import beam_peers as peers
from benchmarks import decoding_gpu, gpu
from benchmarks.decoding_gpu import MEASUREMENTS
from benchmarks.gpu import FULL, Scale
from benchmarks.measure import Figure, Setting
from leadre.decoding import kernels

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 12_544,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
TINY = Scale(
    llama=SMALL,
    qwen={**SMALL, "head_dim": 8},
    ads=2_000,
    users=4,
    peer_users=2,
    prompt=20,
    beams=3,
    contexts=((7, 1, 12.0), (9, 2, 70.0)),
    wide_beams=5,
    repeats=1,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the whole benchmark would run")
def test_without_a_gpu_every_goal_is_told_as_not_run(capsys):
    assert decoding_gpu.main(MEASUREMENTS, []) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["figures"]
    assert len(figures) == 8
    assert {figure["value"] for figure in figures} == {None}
    assert {figure["note"] for figure in figures} == {"there is no CUDA GPU here"}
    assert {figure["goal"] for figure in figures} == {
        ">= 260",
        ">= 30",
        "<= 0.001",
        "<= 12",
        "<= 70",
        "<= 275",
        ">= 1.4",
        "<= 0.05",
    }


@pytest.mark.parametrize(
    ("measure", "number"),
    [
        (decoding_gpu.throughput, 3),
        (decoding_gpu.same_lists_in_float32, 1),
        (decoding_gpu.latencies, 2),
        (partial(decoding_gpu.beside_bf16, "w8a8"), 2),
        (partial(decoding_gpu.beside_bf16, "fp8"), 2),
        (decoding_gpu.single_steps, 5),
    ],
)
def test_each_measurement_runs_to_its_end(measure, number):
    figures = list(measure(TINY, CPU))
    assert len(figures) == number
    assert all(figure.value is not None and figure.value >= 0 for figure in figures)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the whole benchmark would run")
def test_a_goal_has_the_same_name_with_and_without_a_gpu():
    told = {figure.name for measure in MEASUREMENTS for figure in measure(Setting(True, None))}
    like_full = TINY._replace(users=64, prompt=700, beams=50, contexts=FULL.contexts)
    names = {decoding_gpu.throughput_name(like_full) + name for name in (decoding_gpu.PACE, decoding_gpu.TIMES)}
    names |= {decoding_gpu.latency_name(*case) for case in like_full.contexts}
    measured = [*decoding_gpu.beside_bf16("fp8", TINY, CPU), *decoding_gpu.step_of_the_search(TINY, CPU)]
    measured += decoding_gpu.same_lists_in_float32(TINY, CPU)
    names |= {figure.name.replace("5 beams", "256 beams") for figure in measured if figure.goal is not None}
    assert names == told


def as_if_on_a_gpu(monkeypatch, *, fused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(gpu, "machine", lambda device: f"machine {device}")
    monkeypatch.setattr(kernels, "FUSED", fused)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gpu_without_triton_misses_a_goal(fused, monkeypatch):
    as_if_on_a_gpu(monkeypatch, fused=fused)
    told, measured = decoding_gpu._on_a_gpu(lambda scale, device: iter([Figure("x", 1)]), Setting(True, None))
    assert (told.name, told.holds, told.note) == ("Triton is installed", fused, "machine cuda:0")
    assert measured == Figure("x", 1)


def test_memory_is_given_back_where_a_measurement_fails(monkeypatch):
    def broken(scale, device):
        yield Figure("x", 1)
        raise AssertionError("not equal")

    as_if_on_a_gpu(monkeypatch, fused=True)
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    with pytest.raises(AssertionError, match="not equal"):
        list(decoding_gpu._on_a_gpu(broken, Setting(True, None)))
    assert freed == [True]


def test_the_main_figure_is_there_before_a_peer_fails(monkeypatch):
    monkeypatch.setattr(peers, "nested", lambda sids: pytest.fail("no memory"))
    first = next(decoding_gpu.throughput(TINY, CPU))
    assert first.name.endswith(decoding_gpu.PACE)
    assert first.value > 0


def test_rotary_frequencies_stay_in_float32():
    model = gpu.model_of("llama", SMALL, CPU, torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_machine_is_told_with_its_versions():
    assert gpu.machine(CPU).startswith(f"CPU, torch {torch.__version__}, transformers ")


def test_an_unfused_step_by_hand():
    """Two beams at 0 and -1 whose nodes have the codes {0, 1} and {1}; every logit is the same: log(1/3) each."""
    codes, first_child = torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3])
    best = decoding_gpu.unfused(
        torch.zeros(2, 3), torch.tensor([[0.0, -1.0]]), torch.tensor([[0, 1]]), codes, first_child, 2, 1
    )
    torch.testing.assert_close(best, torch.full((1, 2), -torch.tensor(3.0).log().item()))


def test_three_levels_have_that_many_ads_under_the_last_tokens():
    trie, tokens = gpu.three_levels(500, 100, codes=16)
    assert len(trie.codes[-1]) == 500
    assert tokens == (range(52, 68), range(68, 84), range(84, 100))


def test_overlap_by_hand():
    assert gpu.overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 9], [4, 3]])) == 0.75
