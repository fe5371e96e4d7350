import logging

import numpy as np
import pytest
import torch
from torch.nn import functional

from leadre.baselines.features import Bags
from leadre.baselines.linear import LinearModel, fit, predict, rows


def _bags(dense):
    mask = dense != 0
    return Bags(
        feature=np.nonzero(mask)[1].astype(np.int64),
        weight=dense[mask].astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(mask.sum(axis=1))]),
    )


@pytest.fixture
def dense():
    rng = np.random.default_rng(0)
    values = rng.random((7, 5)) * (rng.random((7, 5)) < 0.6)
    values[3] = 0  # a row without any feature
    return values


def test_log_probabilities_and_gradient_equal_a_numpy_softmax(dense):
    groups = torch.tensor([[0, 0, 1, 1], [2, 3, 3, 2]])
    model = LinearModel(5, groups, 4)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.weights.weight)
    torch.nn.init.normal_(model.bias)
    weight, bias = model.weights.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    member = np.zeros((4, 4))  # (groups, ads)
    for grouping in groups.numpy():
        member[grouping, np.arange(4)] += 1
    logits = dense.astype(np.float32) @ (weight[:, :4] + weight[:, 4:] @ member) + bias
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(model, _bags(dense), batch_size=3), np.log(probability), atol=1e-5)

    target = np.array([0, 1, 2, 3, 0, 1, 2])
    functional.cross_entropy(model(*rows(_bags(dense), np.arange(7))), torch.from_numpy(target)).backward()
    error = (probability - np.eye(4)[target]) / 7
    expected = np.concatenate([dense.T @ error, dense.T @ (error @ member.T)], axis=1)
    np.testing.assert_allclose(model.weights.weight.grad.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(model.bias.grad.numpy(), error.sum(axis=0), atol=1e-6)


def test_chosen_rows_are_those_rows(dense):
    feature, weight, offsets = rows(_bags(dense), np.array([4, 3, 0]))
    ends = [*offsets.tolist()[1:], len(feature)]
    for row, start, end in zip((4, 3, 0), offsets.tolist(), ends, strict=True):
        rebuilt = np.zeros(5)
        rebuilt[feature[start:end]] = weight[start:end]
        np.testing.assert_allclose(rebuilt, dense[row], atol=1e-6)


def test_the_model_learns_what_popularity_cannot_know():
    """Feature f decides the ad; every ad is equally popular, so popularity is right in one of four."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 400)
    bags, chosen = _bags(np.eye(4)[kind]), kind.astype(np.int64)
    model = LinearModel(4, torch.zeros((1, 4), dtype=torch.long), 1)
    result = fit(model, bags, chosen, bags, chosen, learning_rate=0.1, batch_size=50, max_epochs=10, patience=2, seed=0)
    assert (predict(model, bags, batch_size=64).argmax(axis=1) == kind).all()
    assert result.valid_loss < 0.2 < np.log(4)


def test_training_stops_when_the_valid_loss_rises_and_keeps_the_best_epoch():
    """The valid ads are never those of training: any step makes it worse than the epoch before."""
    bags, train, valid = _bags(np.ones((20, 1))), np.zeros(20, dtype=np.int64), np.ones(20, dtype=np.int64)
    model = LinearModel(1, torch.zeros((1, 2), dtype=torch.long), 1)
    result = fit(model, bags, train, bags, valid, learning_rate=0.1, batch_size=20, max_epochs=9, patience=2, seed=0)
    assert result.epochs == 1
    loss = -predict(model, bags, batch_size=20)[:, 1].mean()
    assert loss == pytest.approx(result.valid_loss, abs=1e-6)


def test_the_same_seed_gives_the_same_weights(dense):
    models = [LinearModel(5, torch.zeros((1, 4), dtype=torch.long), 1) for _ in range(2)]
    target = np.array([0, 1, 2, 3, 0, 1, 2])
    for model in models:
        fit(
            model,
            _bags(dense),
            target,
            _bags(dense),
            target,
            learning_rate=0.1,
            batch_size=2,
            max_epochs=3,
            patience=3,
            seed=0,
        )
    assert torch.equal(models[0].weights.weight, models[1].weights.weight)


def test_without_valid_targets_the_last_epoch_is_kept_and_said_so(dense, caplog):
    model, bags = LinearModel(5, torch.zeros((1, 4), dtype=torch.long), 1), _bags(dense)
    target, nobody = np.array([0, 1, 2, 3, 0, 1, 2]), np.zeros(0, dtype=np.int64)
    with caplog.at_level(logging.INFO):
        result = fit(
            model,
            bags,
            target,
            bags.part(0, 0),
            nobody,
            learning_rate=0.1,
            batch_size=9,
            max_epochs=3,
            patience=1,
            seed=0,
        )
    assert result.epochs == 3
    assert np.isnan(result.valid_loss)
    assert "no valid targets to stop by, so the last of 3 epochs is kept" in caplog.text
    assert model.weights.weight.abs().sum() > 0


def test_a_training_that_diverges_is_told_with_the_key_to_lower(dense):
    model, bags = LinearModel(5, torch.zeros((1, 4), dtype=torch.long), 1), _bags(100 * dense)
    target = np.array([0, 1, 2, 3, 0, 1, 2])
    with pytest.raises(ValueError, match=r"finite valid loss with baselines\.linear\.learning_rate=1e\+37: lower it"):
        fit(
            model,
            bags,
            target,
            bags,
            target,
            learning_rate=1e37,
            batch_size=9,
            max_epochs=2,
            patience=2,
            seed=0,
        )
