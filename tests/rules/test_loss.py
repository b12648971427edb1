"""Loss heads and the softmax as nodes: the numbers of autograd on the loss itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from tests.parity import assert_parity, recorded_gradient, squares

pytestmark = pytest.mark.usefixtures("float64")


def reference(loss, target):
    """Double backpropagation of each sample's own loss ``[B]``."""

    def quantity(model, x):
        y = model(x)
        return y, squares(recorded_gradient(loss(y, target).sum(), x, torch.tensor(1.0)))

    return quantity


def assert_loss(name, loss, model, x, target):
    def ours(model, x):
        return gradreg_fast.functional.double_backprop(model, x, target, name, "none")

    assert_parity(model, ours, reference(loss, target), x)


def classifier(outputs):
    return nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, outputs))


def image_classifier(outputs):
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, outputs, 1))


def mean_of_sample(losses):
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def cross_entropy(y, target):
    return mean_of_sample(functional.cross_entropy(y, target, reduction="none"))


def mse(y, target):
    return mean_of_sample((y - target.view_as(y)).square())


def bce(y, target):
    return mean_of_sample(
        functional.binary_cross_entropy_with_logits(y, target.to(y.dtype).view_as(y), reduction="none")
    )


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_cross_entropy_of_indices(classes):
    assert_loss("cross_entropy", cross_entropy, classifier(classes), torch.randn(4, 5), torch.randint(classes, (4,)))


def test_cross_entropy_of_probabilities():
    target = torch.softmax(torch.randn(4, 3), 1)
    assert_loss("cross_entropy", cross_entropy, classifier(3), torch.randn(4, 5), target)
    assert_loss("cross_entropy", cross_entropy, classifier(3), torch.randn(4, 5), 2 * target)


def test_cross_entropy_of_positions():
    x, target = torch.randn(2, 2, 3, 4), torch.randint(5, (2, 3, 4))
    assert_loss("cross_entropy", cross_entropy, image_classifier(5), x, target)
    assert_loss("cross_entropy", cross_entropy, image_classifier(5), x, torch.randn(2, 5, 3, 4).softmax(1))


def test_cross_entropy_leaves_negative_classes_out():
    target = torch.tensor([2, -100, 0, 1])
    assert_loss("cross_entropy", cross_entropy, classifier(3), torch.randn(4, 5), target)


@pytest.mark.parametrize(("name", "loss"), [("mse", mse), ("bce_with_logits", bce)])
@pytest.mark.parametrize("outputs", [1, 3])
def test_values(name, loss, outputs):
    model, x = classifier(outputs), torch.randn(4, 5)
    assert_loss(name, loss, model, x, torch.rand(4, outputs))
    assert_loss(name, loss, nn.Sequential(model, nn.Tanh()), x, torch.rand(4, outputs))
    if outputs == 1:
        assert_loss(name, loss, model, x, torch.rand(4))
        assert_loss(name, loss, nn.Sequential(model, nn.Flatten(0)), x, torch.rand(4))
        assert_loss(name, loss, nn.Sequential(model, nn.Flatten(0)), x, torch.rand(4, 1))
        assert_loss(name, loss, model, x, torch.randint(2, (4,)))


@pytest.mark.parametrize(("name", "loss"), [("mse", mse), ("bce_with_logits", bce)])
def test_values_of_positions(name, loss):
    assert_loss(name, loss, image_classifier(2), torch.randn(2, 2, 3, 4), torch.rand(2, 2, 3, 4))


@pytest.mark.parametrize("name", ["cross_entropy", "mse", "bce_with_logits"])
def test_large_logits(name):
    model, x = classifier(3), torch.randn(4, 5)
    with torch.no_grad():
        model[2].weight.mul_(200)
    target = torch.randint(3, (4,)) if name == "cross_entropy" else torch.rand(4, 3)
    assert_loss(name, {"cross_entropy": cross_entropy, "mse": mse, "bce_with_logits": bce}[name], model, x, target)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_under_batch_statistics_and_dropout(activation):
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), activation(), nn.Dropout(0.3), nn.Linear(7, 3)]
    target = torch.randint(3, (6,))
    assert_loss("cross_entropy", cross_entropy, nn.Sequential(*layers), torch.randn(6, 5), target)


def test_a_function_of_the_user():
    def huber(y, target):
        return functional.smooth_l1_loss(y, target, reduction="none").sum(1)

    assert_loss(huber, huber, classifier(3), torch.randn(4, 5), torch.randn(4, 3))


def test_a_function_that_is_a_closure_leaves_nothing_behind():
    """A new function every step is no new graph kept for ever."""
    import gc
    import weakref

    model, x, target = classifier(2), torch.randn(4, 5), torch.randn(4, 2)

    def step():
        def loss(y, target):
            return (y - target).abs().sum(1)

        gradreg_fast.functional.double_backprop(model, x, target, loss)[1].backward()
        return weakref.ref(loss)

    dead = step()
    gc.collect()
    assert dead() is None


@pytest.mark.parametrize("classes", [1, 4])
def test_softmax(classes):
    def reference(model, x):
        y = model(x)
        p = torch.softmax(y, 1).flatten(1)
        rows = [recorded_gradient(p[:, k], x, torch.ones(len(x))) for k in range(p.shape[1])]
        return y, squares(torch.stack(rows, 1))

    def ours(model, x):
        return gradreg_fast.functional.jacobian_softmax(model, x, reduction="none")

    assert_parity(classifier(classes), ours, reference, torch.randn(4, 5))
    assert_parity(image_classifier(classes), ours, reference, torch.randn(2, 2, 2, 2))
