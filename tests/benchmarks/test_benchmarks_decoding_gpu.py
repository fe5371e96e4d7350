"""The benchmark for GPUs: without one it tells so and succeeds; its measurements run on a CPU when all is tiny."""

import json

import pytest
import torch

from benchmarks import decoding_gpu, gpu
from benchmarks.decoding_gpu import MEASUREMENTS
from benchmarks.gpu import FULL, Scale
from benchmarks.measure import Setting

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
    assert len(figures) == 7
    assert {figure["value"] for figure in figures} == {None}
    assert {figure["note"] for figure in figures} == {"there is no CUDA GPU here"}
    assert {figure["goal"] for figure in figures} == {
        ">= 260",
        ">= 30",
        "<= 12",
        "<= 70",
        "<= 275",
        ">= 1.4",
        "<= 0.05",
    }


@pytest.mark.parametrize(
    ("measure", "number"),
    [
        (decoding_gpu.throughput, 4),
        (decoding_gpu.latencies, 2),
        (decoding_gpu.quantized, 4),
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
    measured = [*decoding_gpu.quantized(TINY, CPU), *decoding_gpu.step_of_the_search(TINY, CPU)]
    names |= {figure.name.replace("5 beams", "256 beams") for figure in measured if figure.goal is not None}
    assert names == told


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
