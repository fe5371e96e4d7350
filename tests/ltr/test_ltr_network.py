import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from leadre.ltr.network import Network, Sample, fit, loss

FIT = {"hidden_size": 16, "learning_rate": 0.02, "batch_size": 256, "max_epochs": 15, "patience": 3, "seed": 0}


def _sample(count, seed, *, priced=True):
    """Click logit ``2 x0 - 1``; a click's worth rises with x1; log ECPM is ``x1`` plus noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    clicked = (rng.random(count) < 1 / (1 + np.exp(1 - 2 * x[:, 0]))).astype(np.float32)
    worth = np.where(clicked == 1, np.exp(x[:, 1] - 0.5), 1.0).astype(np.float32)  # of mean 1 over clicks
    log_ecpm = (x[:, 1] + 0.1 * rng.normal(size=count)).astype(np.float32)
    return Sample(
        *(torch.from_numpy(a) for a in (x, clicked, worth, log_ecpm if priced else np.full_like(worth, np.nan)))
    )


@pytest.fixture(scope="module")
def network():
    return fit(_sample(6000, 0), _sample(2000, 1), **FIT)


def test_the_loss_is_the_sum_of_three_known_ones():
    rows, heads = _sample(50, 0), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    rows = rows._replace(log_ecpm=torch.where(torch.arange(50) < 10, rows.log_ecpm, float("nan")))
    value, click, ecpm = (column.numpy().astype(np.float64) for column in heads.T)
    clicked, worth = rows.clicked.numpy(), rows.worth.numpy().astype(np.float64)
    weighted = log_loss(clicked, 1 / (1 + np.exp(-value)), sample_weight=worth) * worth.sum() / 50
    plain = log_loss(clicked, 1 / (1 + np.exp(-click)))
    squared = np.mean((ecpm[:10] - rows.log_ecpm[:10].numpy()) ** 2) / 2
    assert loss(heads, rows).item() == pytest.approx(weighted + plain + squared, rel=1e-5)


def test_the_heads_find_what_the_rows_were_drawn_from(network):
    test = _sample(3000, 2)
    with torch.no_grad():
        value, click, log_ecpm = network(test.features).T
    logit = 2 * test.features[:, 0] - 1
    assert torch.corrcoef(torch.stack([click, logit]))[0, 1] > 0.97
    assert torch.corrcoef(torch.stack([value, logit + test.features[:, 1]]))[0, 1] > 0.97  # odds times worth
    assert torch.corrcoef(torch.stack([log_ecpm, test.features[:, 1]]))[0, 1] > 0.97
    assert torch.sigmoid(click).mean().item() == pytest.approx(test.clicked.mean().item(), abs=0.03)


def test_the_click_head_is_as_good_as_a_logistic_regression(network):
    train, test = _sample(6000, 0), _sample(3000, 2)
    reference = LogisticRegression().fit(train.features.numpy(), train.clicked.numpy())
    with torch.no_grad():
        click = torch.sigmoid(network(test.features)[:, 1]).numpy().astype(np.float64)
    expected = log_loss(test.clicked.numpy(), reference.predict_proba(test.features.numpy())[:, 1])
    assert log_loss(test.clicked.numpy(), click) < expected + 0.01


def test_the_same_seed_gives_the_same_weights_and_touches_no_global_randomness():
    few = FIT | {"max_epochs": 2}
    torch.manual_seed(7)
    first = fit(_sample(300, 0), _sample(100, 1), **few).state_dict()
    drawn = torch.rand(1)
    second = fit(_sample(300, 0), _sample(100, 1), **few).state_dict()
    other = fit(_sample(300, 0), _sample(100, 1), **few | {"seed": 1}).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["hidden.weight"], other["hidden.weight"])
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(7)))


def test_training_stops_when_held_out_users_say_so(caplog):
    with caplog.at_level("INFO"):
        fit(_sample(40, 0), _sample(200, 1), **FIT | {"learning_rate": 0.3, "max_epochs": 60, "patience": 2})
    assert len([record for record in caplog.records if "ltr epoch" in record.message]) < 60


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience_is_the_number_of_epochs_without_a_better_loss(caplog, patience):
    with caplog.at_level("INFO"):
        fit(_sample(40, 0), _sample(200, 1), **FIT | {"learning_rate": 0.3, "max_epochs": 60, "patience": patience})
    losses = [record.args[1] for record in caplog.records if "ltr epoch" in record.message]
    assert len(losses) - 1 - int(np.argmin(losses)) == patience


def test_without_held_out_users_the_training_rows_judge():
    fit(_sample(100, 0), _sample(0, 1), **FIT | {"max_epochs": 2})


def test_rows_without_any_ecpm_teach_the_other_heads():
    network = fit(_sample(2000, 0, priced=False), _sample(500, 1, priced=False), **FIT | {"max_epochs": 3})
    with torch.no_grad():
        assert network(_sample(10, 2).features).isfinite().all()


def test_a_feature_that_never_changes_is_harmless():
    rows = _sample(100, 0)
    constant = rows._replace(features=torch.cat([rows.features, torch.ones(100, 1)], dim=1))
    network = fit(constant, constant, **FIT | {"max_epochs": 1})
    assert isinstance(network, Network)
    assert network.deviation[2] == 1


def test_a_loss_that_is_no_number_is_told():
    rows = _sample(100, 0)
    broken = rows._replace(features=rows.features * float("nan"))
    with pytest.raises(ValueError, match=r"ltr: no epoch has a finite loss: lower ltr.learning_rate \(0.02\)"):
        fit(broken, broken, **FIT | {"max_epochs": 1})
