import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from leadre.baselines import softmax
from leadre.baselines.past import NONE
from leadre.baselines.sasrec import Sasrec, collate, sequences_of
from leadre.baselines.softmax import cross_entropy_over_all

N = 7


def _network(max_ads=4, layers=2):
    torch.manual_seed(0)
    network = Sasrec(N, max_ads=max_ads, width=8, heads=2, inner=12, layers=layers, dropout=0.0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # zeros and ones would hide a fault
    return network


def _targets(rows):
    return pl.DataFrame(sorted(rows), schema={"user_id": pl.String, "time": pl.Int64, "column": pl.Int64}, orient="row")


clicks = st.lists(
    st.tuples(st.sampled_from("uv"), st.integers(0, 12), st.integers(0, N - 1)), min_size=1, max_size=25
).map(lambda rows: [(u, t, c) for u, t, c in rows])


@settings(max_examples=50, deadline=None)
@given(clicks, st.integers(1, 5))
def test_each_target_reads_ads_of_its_user_strictly_before_it_and_the_latest_of_them(rows, max_ads):
    targets = _targets(rows)
    found = sequences_of(targets, max_ads=max_ads)
    learned = [row for first, stop in found.targets for row in range(first, stop)]
    assert learned == list(range(targets.height))
    table = targets.rows()
    for (begin, end), (first, stop) in zip(found.ads, found.targets, strict=True):
        assert 0 <= end - begin <= max_ads
        for row in range(first, stop):
            user, time, _ = table[row]
            before = [place for place, (u, t, _) in enumerate(table) if u == user and t < time]
            read = list(range(begin, begin + found.states[row]))
            assert found.states[row] <= end - begin
            assert read == before[len(before) - len(read) :]
            assert len(read) >= min(len(before), 1)


@settings(max_examples=8, deadline=None)
@given(clicks)
def test_the_shared_pass_gives_the_loss_of_each_target_alone(rows):
    network, targets = _network(max_ads=25), _targets(rows)
    network.eval()
    sequences = sequences_of(targets, max_ads=25)
    every = np.arange(len(sequences.targets))
    losses, table = [], targets.rows()
    for user, time, column in table:
        history = [c for u, t, c in table if u == user and t < time]
        ads = torch.tensor([history], dtype=torch.int64).reshape(1, -1)
        losses.append(functional.cross_entropy(network.scores(ads), torch.tensor([column])))
    shared = network.loss(collate(sequences, every, every))
    torch.testing.assert_close(shared, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_step_add_up_to_its_loss_also_where_one_is_empty():
    network = _network().eval()
    sequences = sequences_of(_targets([("u", t, t % N) for t in range(9)] + [("v", 1, 2)]), max_ads=4)
    whole = np.arange(len(sequences.targets))
    parts = [network.loss(collate(sequences, part, whole)) for part in (whole[:1], whole[1:], whole[:0])]
    torch.testing.assert_close(sum(parts), network.loss(collate(sequences, whole, whole)))


def test_scores_are_those_of_self_attention_written_out():
    network = _network().eval()
    history = [3, 1, 3]
    x = math.sqrt(8) * (torch.stack([network.ads.weight[ad] for ad in [N, *history]]) + network.places.weight[:4])
    for layer in network.layers:
        y = functional.layer_norm(x, (8,), layer.norm1.weight, layer.norm1.bias)
        q, k, v = (y @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).split(8, dim=1)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = torch.zeros(4, 4)
            for i in range(4):
                weights[i, : i + 1] = torch.softmax(q[i, part] @ k[: i + 1, part].T / math.sqrt(4), dim=0)
            heads.append(weights @ v[:, part])
        x = x + torch.cat(heads, dim=1) @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias
        y = functional.layer_norm(x, (8,), layer.norm2.weight, layer.norm2.bias)
        y = functional.gelu(y @ layer.linear1.weight.T + layer.linear1.bias)
        x = x + y @ layer.linear2.weight.T + layer.linear2.bias
    state = functional.layer_norm(x, (8,), network.norm.weight, network.norm.bias)[-1]
    expected = torch.stack([state @ network.ads.weight[ad] for ad in range(N)])
    torch.testing.assert_close(network.scores(torch.tensor([[*history, NONE]]))[0], expected)


def test_no_state_knows_a_later_ad():
    network = _network().train()  # PyTorch has another way in evaluation
    ads = torch.tensor([[1, 2, 3, 4]])
    changed = torch.tensor([[1, 2, 5, NONE]])
    torch.testing.assert_close(network(ads)[:, :3], network(changed)[:, :3])
    assert not torch.allclose(network(ads)[:, 3], network(changed)[:, 3])


@pytest.mark.parametrize("at_once", [1, 30, 1 << 20])
def test_the_softmax_over_all_ads_is_that_of_pytorch(monkeypatch, at_once):
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    states, ads = (
        torch.randn(rows, 4, dtype=torch.float64, generator=generator).mul(9).requires_grad_() for rows in (6, N)
    )
    targets = torch.randint(N, (6,), generator=generator)
    ours = cross_entropy_over_all(states, ads, targets)
    reference = functional.cross_entropy(states @ ads.T, targets, reduction="sum")
    torch.testing.assert_close(ours, reference)
    for given_by_us, expected in zip(
        torch.autograd.grad(3 * ours, (states, ads)), torch.autograd.grad(3 * reference, (states, ads)), strict=True
    ):
        torch.testing.assert_close(given_by_us, expected)


def test_nothing_to_learn_costs_nothing():
    ads = torch.zeros(N, 4, requires_grad=True)
    loss = cross_entropy_over_all(torch.zeros(0, 4), ads, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not ads.grad.any()


@torch.no_grad()
def test_at_the_start_an_ad_is_louder_than_what_the_layers_add_to_it():
    torch.manual_seed(0)
    network = Sasrec(50, max_ads=20, width=64, heads=2, inner=256, layers=2, dropout=0.0).train()
    added, heard = [], []
    for layer in network.layers:
        layer.register_forward_hook(lambda _, given, made: added.append((made - given[0]).square().mean().sqrt()))
    network.layers[0].register_forward_pre_hook(lambda _, given: heard.append(given[0].square().mean().sqrt()))
    network(torch.arange(40).reshape(2, 20))
    assert len(added) == 2
    assert all(heard[0] >= one for one in added)
