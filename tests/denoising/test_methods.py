"""DCF, DeCA, SGDL, BOD and DA-MRS against naive computations: loops, finite differences, dense matrices."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.features import ItemFeatures
from recbole_guider.denoising.base import Logits
from recbole_guider.denoising.bod import alignment, gradient_matching, uniformity, weighted_ranking_loss
from recbole_guider.denoising.damrs import (
    agreeing_graphs,
    cooccurrence_graph,
    denoised_loss,
    neighbour_contrast,
    preference_weights,
)
from recbole_guider.denoising.dcf import corrected_loss, corrections, damped, lower_bound
from recbole_guider.denoising.deca import bernoulli_kl, deca_loss
from recbole_guider.denoising.model import INTERACTION
from recbole_guider.denoising.sgdl import clean_share, gumbel_selection, memorised_pairs
from recbole_guider.quick_start import prepare_run

pytestmark = pytest.mark.slow


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_logits(seed: int, negatives: bool) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(11, 1, generator=generator, dtype=torch.float64)
    negative = torch.randn(11, 2, generator=generator, dtype=torch.float64) if negatives else None
    return Logits(positive, negative)


def trained(model: str, toy: dict[str, Any], denoising: Any, epochs: int = 1, **changes: Any) -> tuple[Any, Any]:
    """A trainer after some epochs, and its training loader."""
    settings = {**toy, **changes, "epochs": epochs, "denoising": denoising}
    trainer, train, _, _ = prepare_run(GuiderConfig(model, "toy", config_dict=settings, command_line=[]))
    trainer.fit(train, None, saved=False)
    trainer.model.train()
    return trainer, train


def batch_of(train: Any) -> Interaction:
    return next(iter(train))


# -- DCF ----------------------------------------------------------------------------------------------------------


def test_dcf_bounds_sorts_keeps_and_relabels() -> None:
    rng = np.random.default_rng(0)
    losses, recorded, selected = rng.random(40) * 3, rng.integers(1, 4, 40), rng.integers(1, 4, 40)
    c = 0.3
    expected = [
        max(0.0, m - c * (t + c * math.log(2 * t) / t**2) / (n - c))
        for m, t, n in zip(losses, recorded, selected, strict=True)
    ]
    bound = lower_bound(torch.tensor(losses), torch.tensor(recorded), torch.tensor(selected), c)
    np.testing.assert_allclose(bound.numpy(), expected)
    np.testing.assert_allclose(damped(torch.tensor(losses)).numpy(), np.log(1 + losses + losses**2 / 2))

    found = corrections(bound, 0.5, 0.2)
    order = np.argsort(expected, kind="stable")
    assert found.kept.tolist() == order[:20].tolist()  # half is taken out,
    assert found.relabelled.tolist() == order[36:].tolist()  # and a fifth of that half is relabelled
    nothing = corrections(bound, 0.0, 0.2)
    assert len(nothing.kept) == 40 and len(nothing.relabelled) == 0


@pytest.mark.parametrize("negatives", [True, False])
def test_dcf_turns_the_label_of_the_relabelled(negatives: bool) -> None:
    given = random_logits(1, negatives)
    found = corrections(given.observed_losses(), 0.6, 0.5)
    terms = [-math.log(sigmoid(float(given.positive[b]))) for b in found.kept]
    terms += [-math.log(1 - sigmoid(float(given.positive[b]))) for b in found.relabelled]
    if given.negative is not None:
        terms += [-math.log(sigmoid(x)) for x in given.negative.flatten().tolist()]
    assert len(found.kept) == 4 and len(found.relabelled) == 4
    assert float(corrected_loss(given, found)) == pytest.approx(np.mean(terms))


def test_dcf_remembers_each_interaction_over_the_window(toy: dict[str, Any]) -> None:
    """Losses written down batch by batch, by hand, over two windows."""
    settings = {**toy, "epochs": 5, "denoising": {"method": "dcf", "window": 3, "steps": 4, "drop_rate": 0.5}}
    trainer, train, _, _ = prepare_run(GuiderConfig("BPR", "toy", config_dict=settings, command_line=[]))
    method, seen = trainer.model.method, []
    loss = method.loss

    def watched(sample: Any) -> Any:
        seen.append((sample.interactions.tolist(), sample.logits.observed_losses().tolist()))
        return loss(sample)

    method.loss = watched
    trainer.fit(train, None, saved=False)
    per_epoch = len(seen) // 5
    history: dict[int, list[float]] = {}
    for interactions, losses in seen[3 * per_epoch :]:  # the second window has two epochs so far
        for interaction, value in zip(interactions, losses, strict=True):
            history.setdefault(interaction, []).append(math.log(1 + value + value**2 / 2))
    assert len(history) == len(method.sums) and all(len(values) == 2 for values in history.values())
    for interaction, values in history.items():
        assert float(method.sums[interaction]) == pytest.approx(sum(values), rel=1e-5)
        assert 1 <= int(method.selected[interaction]) <= 3
    assert int((method.selected - 1).sum()) == pytest.approx(len(history), rel=0.05)  # half of two epochs is kept
    assert method.co_lambda == 0.0  # the bound has shrunk to nothing in the last epoch


# -- DeCA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_deca_is_agreement_minus_expected_likelihood(positive: bool, alpha: float) -> None:
    backbone, auxiliary, noise = (random_logits(seed, True) for seed in (2, 3, 4))
    cost, total = 7.0, 0.0
    for sampled in (False, True):
        terms = []
        for x, a, n in zip(*((part[1] if sampled else part[0]).flatten().tolist() for part in (backbone, auxiliary,
                                                                                               noise)), strict=True):
            p, q, h = ((1 - sigmoid(value)) if sampled else sigmoid(value) for value in (x, a, n))

            def kl(first: float, second: float) -> float:
                return first * math.log(first / second) + (1 - first) * math.log((1 - first) / (1 - second))

            if positive:
                likelihood = (1 - p) * math.log(1 - h) - cost * p if sampled else (1 - p) * math.log(h)
            else:
                likelihood = p * math.log(1 - h) if sampled else p * math.log(h) - cost * (1 - p)
            terms.append(alpha * kl(q, p) + (1 - alpha) * kl(p, q) - likelihood)
        total += np.mean(terms)
    found = deca_loss(backbone, auxiliary, noise, positive=positive, alpha=alpha, cost=cost)
    assert float(found) == pytest.approx(total)


def test_a_comparison_turned_round_stands_for_the_sampled_pair() -> None:
    backbone, auxiliary, noise = (random_logits(seed, False) for seed in (2, 3, 4))
    mirrored = [Logits(part.positive, part.positive) for part in (backbone, auxiliary, noise)]
    for positive in (True, False):
        options = {"positive": positive, "alpha": 0.5, "cost": 3.0}
        assert float(deca_loss(backbone, auxiliary, noise, **options)) == pytest.approx(
            float(deca_loss(*mirrored, **options))
        )


def test_divergences_of_certain_models_are_finite() -> None:
    x = torch.tensor([-80.0, 0.0, 80.0], requires_grad=True)
    kl = bernoulli_kl(x, torch.flip(x.detach(), [0]))
    np.testing.assert_allclose(kl.detach().numpy(), [80, 0, 80], rtol=1e-4)
    kl.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_deca_takes_turns_and_trains_all_four_models(toy: dict[str, Any]) -> None:
    trainer, train = trained("BPR", toy, "deca")
    model, method = trainer.model, trainer.model.method
    in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in model.parameters()}
    turn = int(method.step) % 2
    for count in range(2):
        trainer.optimizer.zero_grad()
        model.calculate_loss(batch_of(train)).backward()
        first, second = (noise.users.weight.grad for noise in (method.noise_positive, method.noise_negative))
        used, idle = (first, second) if (turn + count) % 2 == 0 else (second, first)
        assert used is not None and idle is None
        for table in (method.auxiliary.users, model.recommender.user_embedding):
            assert table.weight.grad is not None


# -- SGDL ---------------------------------------------------------------------------------------------------------


def test_memorised_pairs_are_those_ranked_above_as_many_sampled_ones() -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 6, 50)
    positive, negative = rng.normal(0.5, 1, 50).round(1), rng.normal(size=50).round(1)
    found = memorised_pairs(users, positive, negative)
    for user in range(6):
        rows = np.flatnonzero(users == user)
        for row in rows:
            ahead = (positive[rows] > positive[row]).sum() + (negative[rows] >= positive[row]).sum()
            tied = (positive[rows] == positive[row]).sum() - 1
            if not tied:
                assert found[row] == (ahead < len(rows)), (user, row)
    assert memorised_pairs(users, np.ones(50), np.zeros(50)).all()
    assert not memorised_pairs(users, np.zeros(50), np.zeros(50)).any()  # ties count against


def test_the_clean_share_is_that_of_two_heaps_of_losses() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 20)
    noisy = rng.random(4000) < 0.25
    scale = rng.random(200)[users] * 5 + 1  # users differ in scale: losses are compared within a user
    losses = scale * (np.where(noisy, 0.9, 0.15) + 0.05 * rng.normal(size=4000)) + 3 * users
    assert clean_share(losses, users, 0) == pytest.approx(0.75, abs=0.03)
    assert clean_share(np.ones(5), np.arange(5), 0) == 1.0


def test_gumbel_selection_draws_by_the_softmax_and_passes_gradients() -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0], requires_grad=True)
    generator, counts = torch.Generator().manual_seed(0), np.zeros(4)
    for _ in range(500):
        drawn = gumbel_selection(scores, 1.0, generator)
        assert ((drawn.detach().round(decimals=4) == 1).sum(1) == 1).all()
        counts += drawn.detach().sum(0).numpy()
    expected = torch.softmax(scores.detach().double(), 0).numpy() * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > 0.01
    (drawn @ torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert scores.grad is not None and (scores.grad != 0).any()


def test_the_weigher_learns_through_a_step_of_the_backbone(toy: dict[str, Any]) -> None:
    """The meta-gradient against finite differences of: weigh, take a step by hand, measure elsewhere."""
    trainer, train = trained("LightGCN", toy, "sgdl")
    model = trainer.model.double()
    # the graph of the backbone too
    model.recommender.norm_adj_matrix = model.recommender.norm_adj_matrix.to(dtype=torch.float64)
    method = model.method
    batches = iter(train)
    here, there = next(batches), next(batches)

    def measured(weigher: Any) -> float:
        moved = copy.deepcopy(model)
        losses = moved.observe(here)[0].logits.row_losses()
        weighted = (losses * weigher(losses.detach()).detach()).mean()
        parameters = list(moved.recommender.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(weighted, parameters), strict=True):
            parameter.data -= method.learning_rate * gradient
        return float(moved.observe(there)[0].logits.row_losses().mean().detach())

    losses = model.observe(here)[0].logits.row_losses()
    found = method.losses_after_step(losses, there).mean()
    assert float(found.detach()) == pytest.approx(measured(method.weigher), rel=1e-9)
    gradient = torch.autograd.grad(found, list(method.weigher.parameters()))
    generator, step = torch.Generator().manual_seed(0), 1e-3
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in method.weigher.parameters()]
    sides = []
    for sign in (1, -1):
        other = copy.deepcopy(method.weigher)
        for parameter, part in zip(other.parameters(), direction, strict=True):
            parameter.data += sign * step * part
        sides.append(measured(other))
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-3)


def test_sgdl_memorises_then_guides(toy: dict[str, Any]) -> None:
    trainer, train = trained("LightGCN", toy, {"method": "sgdl", "history": 2}, epochs=15)
    method = trainer.model.method
    assert bool(method.guided)
    assert 0 < float(method.memorised.float().mean()) <= 1
    before = [p.clone() for network in (method.weigher, method.scheduler) for p in network.parameters()]
    own = {id(p) for network in (method.weigher, method.scheduler) for p in network.parameters()}
    assert not own & {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    batch = batch_of(train)
    loss = trainer.model.calculate_loss(batch)
    after = [p for network in (method.weigher, method.scheduler) for p in network.parameters()]
    assert all((a != b).any() for a, b in zip(after[:4], before[:4], strict=True))  # the weigher has learnt
    assert any((a != b).any() for a, b in zip(after[4:], before[4:], strict=True))  # and so has the scheduler
    assert all(p.grad is None for p in after)
    sample, other = trainer.model.observe(batch)
    losses = sample.logits.row_losses()
    with torch.no_grad():
        expected = (method.weigher(losses) * losses).mean() + other
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


# -- BOD ----------------------------------------------------------------------------------------------------------


def test_alignment_uniformity_and_matching_by_loops() -> None:
    rng = np.random.default_rng(0)
    users, items, weight = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), rng.random(9)

    def unit(row: np.ndarray) -> np.ndarray:
        return row / np.linalg.norm(row)

    expected = np.mean([w * np.sum((unit(u) - unit(i)) ** 2) for u, i, w in zip(users, items, weight, strict=True)])
    assert float(alignment(*map(torch.tensor, (users, items, weight)))) == pytest.approx(expected)
    pairs = [np.exp(-2 * np.sum((unit(users[a]) - unit(users[b])) ** 2)) for a in range(9) for b in range(a)]
    assert float(uniformity(torch.tensor(users))) == pytest.approx(math.log(np.mean(pairs)))
    others = rng.normal(size=(9, 4))
    columns = [1 - np.dot(users[:, k], others[:, k]) / np.linalg.norm(users[:, k]) / np.linalg.norm(others[:, k])
               for k in range(4)]
    first, second = [torch.tensor(users), torch.ones(3), None], [torch.tensor(others), torch.ones(3), torch.ones(2, 2)]
    assert float(gradient_matching(first, second)) == pytest.approx(sum(columns), abs=1e-5)


@pytest.mark.parametrize("distinct", [2, 9, 300])  # more than a block
def test_uniformity_and_its_gradient_by_all_pairs(distinct: int) -> None:
    """Of rows that occur several times, and of those with their counts."""
    rng = np.random.default_rng(distinct)
    rows = torch.tensor(3 * rng.normal(size=(distinct, 4)), requires_grad=True)
    counts = torch.tensor(rng.integers(1, 4, size=distinct))

    def by_pairs(repeated: torch.Tensor) -> torch.Tensor:
        unit = repeated / repeated.norm(dim=1, keepdim=True)
        first, second = np.triu_indices(len(unit), k=1)
        return (-2 * (unit[first] - unit[second]).square().sum(dim=1)).exp().mean().log()

    repeated = rows.repeat_interleave(counts, dim=0)
    expected = by_pairs(repeated)
    (gradient,) = torch.autograd.grad(0.7 * expected, rows, retain_graph=True)
    for found in (uniformity(repeated), uniformity(rows, counts)):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(0.7 * found, rows, retain_graph=True)[0], gradient)
    assert float(uniformity(rows[:1]).detach()) == 0.0
    with torch.autocast("cpu"):
        assert uniformity(rows.float()).dtype == torch.float32


def test_uniformity_never_holds_all_pairs() -> None:
    rows = torch.randn(3000, 4, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        uniformity(rows).backward()
    assert max(event.cpu_memory_usage for event in profile.events()) < 3000 * 3000 * 4 / 4


def test_bod_weighs_scores_inside_and_learns_weights_outside(toy: dict[str, Any]) -> None:
    trainer, train = trained("BPR", toy, "bod")
    model, method = trainer.model, trainer.model.method
    sample, _ = model.observe(batch_of(train))
    positive, negative = method._weights(sample)
    users, items = model.recommender.user_embedding.weight, model.recommender.item_embedding.weight
    expected = []
    for row in range(len(sample.users)):
        u, i, j = users[sample.users[row]], items[sample.items[row]], items[sample.negatives[row, 0]]
        w, other = (torch.sigmoid(method.generator_network.layers(torch.cat([u, v]))) for v in (i, j))
        assert float(w.detach()) == pytest.approx(float(positive[row].detach()), rel=1e-5)
        expected.append(math.log(1 + math.exp(-float(w * (u @ i) - other * (u @ j)))))
    found = float(weighted_ranking_loss(sample, positive, negative).detach())
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
    # the generator's weights are constants of the inner loss
    trainer.optimizer.zero_grad()
    model.calculate_loss(batch_of(train)).backward()
    assert all(parameter.grad is None for parameter in method.generator_network.parameters())
    # outside, its steps bring the two gradients together, and leave the backbone as it is
    weights = [parameter.clone() for parameter in model.recommender.parameters()]
    trainer.optimizer.zero_grad()
    for group in trainer.method_optimizers["generator"].param_groups:
        group["lr"] = 0.05
    batch = batch_of(train)
    losses = [float(method.outer_step(batch)) for _ in range(30)]
    assert losses[-1] < losses[0]
    for parameter, before in zip(model.recommender.parameters(), weights, strict=True):
        assert torch.equal(parameter, before) and parameter.grad is None


def test_the_generators_gradient_is_that_of_the_matched_gradients(toy: dict[str, Any]) -> None:
    """Second-order, through LightGCN's propagation, against finite differences."""
    trainer, train = trained("LightGCN", toy, "bod")
    model = trainer.model.double()
    model.recommender.norm_adj_matrix = model.recommender.norm_adj_matrix.to(dtype=torch.float64)
    method, batch = model.method, batch_of(train)

    def matched(create_graph: bool) -> torch.Tensor:
        sample, _ = model.observe(batch)
        users, items, _ = sample.matrices
        positive, negative = method._weights(sample)
        parameters = list(model.recommender.parameters())
        return gradient_matching(
            *(
                torch.autograd.grad(loss, parameters, create_graph=create_graph, retain_graph=True)
                for loss in (weighted_ranking_loss(sample, positive, negative),
                             alignment(users[sample.users], items[sample.items], positive))
            )
        )

    own = list(method.generator_network.parameters())
    gradient = torch.autograd.grad(matched(True), own)
    generator, step, sides = torch.Generator().manual_seed(0), 1e-7, []
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in own]
    for sign in (1, -2):
        for parameter, part in zip(own, direction, strict=True):
            parameter.data += sign * step * part
        sides.append(float(matched(False)))
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-3)


# -- DA-MRS -------------------------------------------------------------------------------------------------------


def test_weights_of_agreement_by_loops() -> None:
    rng = np.random.default_rng(0)
    observed, sampled = rng.random((3, 20)), rng.random((3, 20))
    found = preference_weights(torch.tensor(observed), torch.tensor(sampled))
    bar = sampled.mean()
    for b in range(20):
        z = observed[:, b]
        assert float(found.positive[b]) == pytest.approx(min(1, z.mean() * math.exp(-z.var(ddof=1)) ** 2))
        expected = max(0.0, z.max() - bar) if z.mean() < bar else 0.0
        assert float(found.negative[b]) == pytest.approx(expected)
    assert (found.negative > 0).any() and (found.negative == 0).any()


@pytest.mark.parametrize("negatives", [True, False])
def test_denoised_bpr_by_loops(negatives: bool) -> None:
    given = random_logits(5, negatives)
    weights = preference_weights(torch.rand(3, 11, dtype=torch.float64), torch.rand(3, 11, dtype=torch.float64))
    terms = []
    for b in range(11):
        p = sigmoid(float(given.positive[b]))
        terms.append(-float(weights.positive[b]) * math.log(p) - float(weights.negative[b]) * math.log(1 - p))
    if given.negative is not None:
        terms += [-math.log(sigmoid(x)) for x in given.negative.flatten().tolist()]
    assert float(denoised_loss(given, weights)) == pytest.approx(np.mean(terms))


def test_the_neighbour_contrast_by_loops() -> None:
    rng = np.random.default_rng(0)
    views, chosen, k, tau = [rng.normal(size=(12, 5)) for _ in range(3)], [1, 4, 7, 11], 3, 0.2
    cosines = [cosine_similarity(view) for view in views]
    chances = [np.exp(c) / np.exp(c).sum(axis=1, keepdims=True) for c in cosines]
    total = 0.0
    for cosine, chance in zip(cosines, chances, strict=True):
        terms = []
        for row in chosen:
            ranked = np.argsort(-(sum(chances) + chance)[row])
            common = ranked[:k]
            own = [item for item in np.argsort(-chance[row]) if item not in common][:k]
            e = np.exp(cosine[row] / tau)
            terms.append(-math.log(e[common].sum() / e.sum()) - math.log(e[own].sum() / (e.sum() - e[common].sum())))
        total += np.mean(terms)
    found = neighbour_contrast([torch.tensor(view) for view in views], torch.tensor(chosen), k, tau)
    assert float(found) == pytest.approx(total / 3)


def test_graphs_keep_what_all_modalities_find_similar(monkeypatch: pytest.MonkeyPatch) -> None:
    import recbole_guider.denoising.damrs as damrs

    rng = np.random.default_rng(0)
    n, k = 30, 4
    features = []
    for missing in ([0, 5], [0, 9, 10]):
        present = np.ones(n, dtype=bool)
        present[missing] = False
        features.append(ItemFeatures(rng.normal(size=(n, 6)).astype(np.float32) + 0.3, present))
    cosines = [cosine_similarity(feature.values) for feature in features]
    means = [c[np.ix_(f.present, f.present)].mean() for c, f in zip(cosines, features, strict=True)]
    for cells in (8_000_000, 7 * n):  # in one block, and in several
        monkeypatch.setattr(damrs, "_BLOCK_CELLS", cells)
        graphs = agreeing_graphs(features, k)
        for number, graph in enumerate(graphs):
            expected = np.zeros((n, n))
            for a in range(n):
                allowed = [
                    b for b in range(n)
                    if features[number].present[[a, b]].all()
                    and all(c[a, b] >= mean for c, mean, f in zip(cosines, means, features, strict=True)
                            if f.present[[a, b]].all())
                ]
                for b in sorted(allowed, key=lambda b: -cosines[number][a, b])[:k]:
                    expected[a, b] = 1
            degree = expected.sum(axis=1) + 1e-7
            expected = np.where(expected > 0, expected / np.sqrt(np.outer(degree, degree)), 0)
            expected[:, degree < 1] = 0
            np.testing.assert_allclose(graph.to_dense().numpy(), expected, atol=1e-5)


def test_the_graph_of_behaviour_counts_common_users() -> None:
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(1, [15, 12], size=(90, 2)), axis=0)
    users, items = pairs.T
    counts = np.zeros((12, 12))
    for a in range(12):
        for b in range(12):
            counts[a, b] = len(set(users[items == a]) & set(users[items == b])) if a != b else 0
    adjacency = (cooccurrence_graph(users, items, 12, 3).to_dense().numpy() > 0).astype(int)
    for a in range(1, 12):
        neighbours = set(np.flatnonzero(adjacency[a])) - {a}
        assert adjacency[a, a] == 1 and len(neighbours) == min(3, int((counts[a] >= 2).sum()))
        if neighbours:
            left = [counts[a, b] for b in range(1, 12) if b != a and b not in neighbours]
            assert min(counts[a, b] for b in neighbours) >= max(2, *left)
    assert not adjacency[0].any() and not adjacency[:, 0].any()


def test_da_mrs_needs_content_and_leaves_padding_alone(toy: dict[str, Any]) -> None:
    from recbole_guider.utils.errors import GuiderError

    with pytest.raises(GuiderError, match="data set 'toy' has no content"):
        trained("BPR", {**toy, "modalities": None}, "da-mrs")
    trainer, train = trained("BPR", toy, "da-mrs")
    model = trainer.model
    assert len(model.method.graphs) == 3
    batch = batch_of(train)
    first = float(model.calculate_loss(batch).detach())
    with torch.no_grad():
        model.recommender.item_embedding.weight[0] = 1e3
        model.recommender.user_embedding.weight[0] = 1e3
    assert float(model.calculate_loss(batch).detach()) == pytest.approx(first)
    assert INTERACTION in batch
