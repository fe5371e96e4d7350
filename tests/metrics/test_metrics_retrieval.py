import numpy as np
import pytest
import torch

from leadre.metrics.ranking import hit_rate, ndcg
from leadre.metrics.retrieval import Retrieval

KS = (1, 4, 8)


def random_case(users=57, width=8, ads=12):
    generator = np.random.default_rng(0)
    return generator.integers(-1, ads, (users, width)), generator.integers(0, ads, users)  # with duplicates


def filled(rows, targets, *cuts):
    metric = Retrieval(ks=KS)
    for part in zip(np.split(rows, cuts), np.split(targets, cuts), strict=True):
        metric.update(*map(torch.from_numpy, part))
    return metric


def expected(rows, targets):
    return {f"hr@{k}": hit_rate(rows, targets[:, None], k=k).mean() for k in KS} | {
        f"ndcg@{k}": ndcg(rows, targets[:, None], k=k).mean() for k in KS
    }


@pytest.mark.parametrize("cuts", [(), (20,), (5, 5, 50)])
def test_batches_of_any_size_give_the_numbers_of_the_pure_functions(cuts):
    rows, targets = random_case()
    values = filled(rows, targets, *cuts).compute()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(expected(rows, targets), abs=1e-6)


def test_two_processes_of_unequal_size_sum_up_to_one():
    rows, targets = random_case()
    first, second = filled(rows[:10], targets[:10]), filled(rows[10:], targets[10:])
    for name, reduce in first._reductions.items():  # what a distributed sync does with the states
        setattr(first, name, reduce(torch.stack([getattr(first, name), getattr(second, name)])))
    values = {name: value.item() for name, value in first.compute().items()}
    assert values == pytest.approx(expected(rows, targets), abs=1e-6)


def test_a_reset_forgets_and_an_empty_metric_is_not_a_number():
    metric = filled(*random_case())
    metric.reset()
    assert metric.users.item() == 0
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert all(torch.isnan(value) for value in metric.compute().values())


def test_forward_gives_the_batch_and_keeps_the_sum():
    metric = Retrieval(ks=(1,))
    assert metric(torch.tensor([[3]]), torch.tensor([3]))["hr@1"] == 1
    assert metric(torch.tensor([[3]]), torch.tensor([4]))["hr@1"] == 0
    assert metric.compute()["hr@1"] == 0.5


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"ks is \(0,\), must hold cuts of 1 or more"):
        Retrieval(ks=(0,))
    with pytest.raises(ValueError, match=r"rows is \(1, 1\) and targets \(2,\): must be \(B, W\) and \(B,\)"):
        Retrieval(ks=KS).update(torch.zeros(1, 1).long(), torch.zeros(2).long())
    with pytest.raises(ValueError, match="targets holds a number below 0"):
        Retrieval(ks=KS).update(torch.tensor([[-1]]), torch.tensor([-1]))
