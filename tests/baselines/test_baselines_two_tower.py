import math

import torch
from torch.nn import functional

from leadre.baselines.past import NONE
from leadre.baselines.two_tower import Batch, Inputs, TwoTower, in_batch_softmax

N, C = 5, 3


def _network(dropout=0.0):
    torch.manual_seed(0)
    network = TwoTower(
        torch.tensor([[1, 6], [2, 6], [3, 7], [4, 7], [5, 0]]),
        torch.tensor([[8, 11], [9, 11], [10, 0]]),
        14,
        torch.full((N,), 1 / N).log(),
        max_ads=4,
        max_contents=4,
        width=6,
        hidden=8,
        dropout=dropout,
        temperature=0.5,
    )
    with torch.no_grad():
        network.ad_recency.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
        network.content_recency.copy_(torch.tensor([-0.3, 0.2, 0.0, 0.5]))
    return network.eval()


def _inputs():
    return Inputs(
        torch.tensor([[12], [13], [0]]),
        torch.tensor([[0, 3, 3], [2, NONE, NONE], [NONE, NONE, NONE]]),
        torch.tensor([[1, 2], [0, NONE], [NONE, NONE]]),
    )


@torch.no_grad()
def test_scores_are_cosines_of_the_towers_written_out():
    network, inputs = _network(), _inputs()
    name, tower = network.names.weight, network.user_tower

    def mean(history, of, recency):
        found = [place for place in history.tolist() if place != NONE]
        if not found:
            return torch.zeros(6)
        weights = [math.exp(recency[len(found) - 1 - i]) for i in range(len(found))]
        vectors = [sum(name[n] for n in of[place].tolist() if n) for place in found]
        return sum(w * v for w, v in zip(weights, vectors, strict=True)) / sum(weights)

    scores = network.scores(inputs)
    for row in range(3):
        read = torch.cat(
            [
                sum((name[n] for n in inputs.profiles[row].tolist() if n), torch.zeros(6)),
                mean(inputs.ads[row], network.ad_names, network.ad_recency),
                mean(inputs.contents[row], network.content_names, network.content_recency),
            ]
        )
        hidden = functional.gelu(tower[1].weight @ read + tower[1].bias)
        user = tower[4].weight @ hidden + tower[4].bias
        for ad in range(N):
            v = network.ad_tower.weight @ sum(name[n] for n in network.ad_names[ad].tolist() if n)
            v = v + network.ad_tower.bias
            cosine = user @ v / (user.norm() * v.norm())
            torch.testing.assert_close(scores[row, ad], cosine / 0.5)


def test_a_batch_that_is_all_train_targets_gives_the_softmax_over_all_ads():
    """Ad j stands n_j = q_j B times in it: the corrected sum is ``sum_j n_j e^s_j / q_j = B sum_j e^s_j``."""
    counts = torch.tensor([4, 1, 2, 3])
    batch = torch.repeat_interleave(torch.arange(4), counts)
    q = counts / counts.sum()
    scores = torch.randn(len(batch), 4, generator=torch.Generator().manual_seed(0))
    corrected = in_batch_softmax(scores[:, batch], q.log()[batch], torch.arange(len(batch)))
    full = functional.cross_entropy(scores, batch, reduction="sum")
    # The user's own logit is corrected too: by -log q instead of nothing.
    constant = len(batch) * math.log(len(batch)) + q.log()[batch].sum()
    torch.testing.assert_close(corrected, full + constant)


def test_in_expectation_the_corrected_sum_is_the_sum_over_all_ads():
    q = torch.tensor([0.6, 0.3, 0.1])
    scores = torch.tensor([0.2, 1.0, -0.5])
    drawn = torch.multinomial(q, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimated = (scores[drawn] - q.log()[drawn]).exp().mean()
    torch.testing.assert_close(estimated, scores.exp().sum(), rtol=0.02, atol=0.0)


def test_the_parts_of_a_step_add_up_to_its_loss_also_where_one_is_empty():
    network, inputs, ads = _network(), _inputs(), torch.tensor([4, 0, 4])

    def part(rows):
        return Batch(Inputs(*(part[rows] for part in inputs)), torch.tensor(rows, dtype=torch.int64), ads)

    parts = [network.loss(part(rows)) for rows in ([0], [1, 2], [])]
    torch.testing.assert_close(sum(parts), network.loss(part([0, 1, 2])))


def test_what_fills_up_changes_nothing():
    network, inputs = _network(), _inputs()
    longer = inputs._replace(ads=functional.pad(inputs.ads, (0, 1), value=NONE))
    torch.testing.assert_close(network.scores(longer), network.scores(inputs))


def test_without_content_the_tower_reads_none():
    network, inputs = _network(), _inputs()
    none = inputs._replace(contents=inputs.contents[:, :0])
    fill = inputs._replace(contents=torch.full_like(inputs.contents, NONE))
    torch.testing.assert_close(network.scores(none), network.scores(fill))
