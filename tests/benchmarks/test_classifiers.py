"""The protocol that compares classifiers: what is chosen, what is held out, how it is attacked; and critics' losses."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib")

import gradreg_fast
from benchmarks import data, models
from benchmarks.experiments import cells, classifiers, gan, robustness
from benchmarks.experiments.classifiers import Block

BLOCK = Block("made", 40)


@pytest.fixture
def made(monkeypatch):
    """A data set of 60 noisy images in place of the real ones."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 28, 28, generator=random), torch.arange(60) % 10
    monkeypatch.setattr(classifiers, "images", lambda name: data.Dataset(x, y, x[:20], y[:20]))


def test_strength_is_chosen_on_held_out_images_and_gains_are_paired():
    def row(method, strength, seed, validation, test):
        config = {**BLOCK._asdict(), "method": method, "strength": strength, "weight": 0, "steps": 1, "seed": seed}
        return cells.Row(config, "none", {"validation": validation, "test": test})

    weak, middle, strong = classifiers.METHODS["weight decay"].strengths
    rows = [row("none", 0, 1, 0, 70), row("none", 0, 2, 0, 80)]
    rows += [row("weight decay", each, seed, 50, 99) for each in (weak, strong) for seed in (1, 2)]
    rows += [row("weight decay", middle, 1, 40, 73), row("weight decay", middle, 2, 70, 81)]
    assert classifiers.blocks(rows) == [BLOCK]
    assert classifiers.chosen(rows, "weight decay", BLOCK) == middle
    assert classifiers.gains(rows, "weight decay", "none", BLOCK) == [3, 1]


def test_held_out_images_are_not_trained_on_and_few_are_among_many(made):
    few, many = ({**BLOCK._asdict(), "samples": samples, "seed": 3} for samples in (20, 40))
    (trained, held), (trained_of_many, held_of_many) = map(classifiers.split, (few, many))
    assert (len(trained), len(held)) == (16, 4)
    assert not {*trained.tolist()} & {*held.tolist()}
    assert {*trained.tolist(), *held.tolist()} < {*trained_of_many.tolist(), *held_of_many.tolist()}


@pytest.mark.parametrize("network", [classifiers.LENET, classifiers.NORMALISED])
def test_engines_train_alike(made, network):
    config = BLOCK._replace(network=network).cells(3, [0])[-1]
    ours, theirs = (torch.stack(run.losses) for run in classifiers.train(config, ("gradreg_fast", "autograd")).values())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["FGSM", "PGD"])
def test_attacks_stay_near_and_do_harm(kind):
    model = models.build((models.Flatten(), *models.mlp(8, 3, activation="tanh")), (1, 4, 4))
    x, y = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3
    moved = robustness.disturbed(kind, 0.1, model, x, y)
    assert (moved - x).abs().max() <= 0.1 * (x.max() - x.min()) * 1.0001
    assert moved.min() >= x.min() and moved.max() <= x.max()
    assert (F.cross_entropy(model(moved), y, reduction="none") > F.cross_entropy(model(x), y, reduction="none")).all()


@pytest.mark.parametrize("penalty", ["r1", "r1_r2", "gradient_penalty"])
def test_critic_tells_real_from_generated_with_its_penalty(penalty):
    model = models.build(models.mlp(8, 1, activation="leaky_relu"), (2,), 1)
    generator = models.build(models.mlp(8, 2, activation="relu"), (gan.NOISE,), 2)
    critic, _ = gan.players(model, generator, "gradreg_fast", penalty, weight=2, steps=1)
    real, fake = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(0))

    def slopes(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0].norm(dim=1)

    if penalty == "gradient_penalty":
        between = gradreg_fast.functional.interpolate(real, fake, torch.Generator().manual_seed(5))
        expected = model(fake).mean() - model(real).mean() + 2 * (slopes(between) - 1).square().mean()
    else:
        expected = F.softplus(-model(real)).mean() + F.softplus(model(fake)).mean()
        expected = expected + 2 * sum(slopes(x).square().mean() for x in (real, fake)[: 1 + (penalty == "r1_r2")])
    torch.testing.assert_close(critic.loss(gan.Pair(real, fake, 5)), expected)
