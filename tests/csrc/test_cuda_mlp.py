"""The CUDA kernels of fully connected networks, run on the CPU, against autograd in float64.

Every number that a kernel must write begins as NaN here, and so does shared memory.
"""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from . import native
from .test_activation import CASES

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C++ compiler for x86-64")

STORAGE = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Of the largest number of each result. The worst seen: 2e-14, 1.4e-6, 2.4e-3, 1.2e-2, 2.1e-3.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "tf32": 1e-2, "bfloat16": 4e-2, "float16": 1e-2}
STRAIGHT = ("identity", "relu", "leaky_relu", "leaky_relu_negative")
LOSSES = {
    "cross entropy": (1, lambda y, t: functional.cross_entropy(y, t, reduction="none")),
    "mean square": (2, lambda y, t: (y - t).square().mean(1)),
    "logistic": (3, lambda y, t: functional.binary_cross_entropy_with_logits(y, t, reduction="none").mean(1)),
}


def pointer(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def nothing_like(tensor):
    """NaN everywhere."""
    return None if tensor is None else torch.full_like(tensor, torch.nan)


class Problem:
    """A network, what both operations are given, and what autograd makes of it in float64.

    Args:
        widths: of the input and of each layer.
        activations: of each layer; one for all but the last, which has none.
        rows: of the batch.
        stack: cotangents.
        arithmetic: what products are made of.
        cotangent: whether there is one; else ones.
        norms: whether the adjoints are those of the norms, not of g.
        given: which adjoints there are: "y", "g" or both.
        bias: whether layers have one.
        offset: whether something is subtracted from g.
        loss: name of the loss on top.
        target: its target, if not drawn here.
        draw: how numbers are drawn.
        layerwise: by a product a layer.
    """

    def __init__(
        self,
        widths,
        activations,
        rows=5,
        stack=1,
        arithmetic="float64",
        cotangent=True,
        norms=False,
        given="yg",
        bias=True,
        offset=False,
        loss=None,
        target=None,
        draw=torch.randn,
        layerwise=False,
    ):
        torch.manual_seed(0)
        depth, dtype = len(widths) - 1, STORAGE[arithmetic]
        activations = [activations] * (depth - 1) + ["identity"] if isinstance(activations, str) else activations
        self.arithmetic, self.widths, self.rows, self.stack, self.loss = arithmetic, widths, rows, stack, loss
        self.layerwise = layerwise
        self.phi = [CASES[name][2] for name in activations]
        scale = 1 if draw is not torch.randn else None
        self.weights = [draw(n, d).mul(scale or d**-0.5).to(dtype) for d, n in pairwise(widths)]
        self.biases = [draw(n).to(dtype) if bias else None for n in widths[1:]]
        self.x = draw(rows, widths[0]).to(dtype)
        self.cotangent = draw(stack, rows, widths[-1]).to(dtype) if cotangent and not loss else None
        self.offset = draw(stack, rows, widths[0]).to(dtype) if offset else None
        self.ybar = draw(rows, widths[-1]).to(dtype) if "y" in given else None
        self.norm_weights = draw(rows).to(torch.promote_types(dtype, torch.float32)) if norms else None
        self.gbar = draw(stack, rows, widths[0]).to(dtype) if "g" in given and not norms else None
        self.target = target if target is not None or not loss else torch.rand(rows, widths[-1]).to(dtype)
        self.norms = norms
        kinds = [CASES[name][0] for name in activations]
        settings = [float(value) for name in activations for value in CASES[name][1]]
        straight = all(name in STRAIGHT for name in activations)
        self.unit_seed = straight and stack == 1 and widths[-1] == 1 and not loss
        number = LOSSES[loss][0] if loss else 0
        self.sizes = native.module("cuda_mlp").Sizes(widths, kinds, settings, rows, stack, number, self.unit_seed)

    def reference(self):
        """y, g, norms, and the gradients of x, the cotangent, weights and biases (None: no such)."""
        double = [None if t is None else t.double().requires_grad_() for t in (self.x, self.cotangent)]
        (x, cotangent), weights = double, [w.double().requires_grad_() for w in self.weights]
        biases = [None if b is None else b.double().requires_grad_() for b in self.biases]
        h = x
        for weight, bias, phi in zip(weights, biases, self.phi, strict=True):
            h = phi(functional.linear(h, weight, bias))
        seeds = [torch.ones_like(h)] if cotangent is None else cotangent
        y = (
            LOSSES[self.loss][1](h, self.target if self.target.dtype == torch.long else self.target.double())
            if (self.loss)
            else h
        )
        if self.loss:
            seeds = [torch.ones_like(y)]
        g = torch.stack([torch.autograd.grad(y, x, seed, create_graph=True)[0] for seed in seeds])
        if self.offset is not None:
            g = g - self.offset.double()
        norms = g.square().sum((0, 2))
        objective = sum(t.sum() * 0 for t in (x, cotangent, *weights, *biases) if t is not None)
        if self.ybar is not None:
            objective = objective + (h * self.ybar.double()).sum()
        if self.norms:
            objective = objective + (norms * self.norm_weights.double()).sum()
        elif self.gbar is not None:
            objective = objective + (g * self.gbar.double()).sum()
        sources = [x, cotangent, *weights, *biases]
        found = iter(torch.autograd.grad(objective, [t for t in sources if t is not None]))
        return [h, g, norms, *(None if t is None else next(found) for t in sources)]

    def run(self, wanted=None, keep=True, **machine):
        """The same by the kernels; of the gradients, those that are wanted."""
        module, depth = native.module("cuda_mlp"), len(self.weights)
        layerwise = machine.get("layerwise", self.layerwise)
        machine = module.Machine(**machine | {"layerwise": layerwise})
        y, g = (
            nothing_like(self.x.new_empty(self.rows, self.widths[-1])),
            self.x.new_empty(self.stack, self.rows, self.widths[0]),
        )
        g, norms = (
            nothing_like(g),
            g.new_full((self.rows,), torch.nan, dtype=torch.promote_types(g.dtype, torch.float32)),
        )
        size = self.sizes.kept_layers(self.arithmetic) if layerwise else self.sizes.kept_size()
        kept = nothing_like(self.x.new_empty(size)) if keep else None
        classes = self.target is not None and self.target.dtype == torch.long
        targets = (pointer(self.target) if classes else 0, 0 if classes else pointer(self.target))
        weights = list(map(pointer, self.weights))
        given = (pointer(self.x), pointer(self.cotangent), *targets)
        outcome = (pointer(y), pointer(g), pointer(norms), pointer(kept))
        self.tile = module.forward_pull(
            self.arithmetic,
            machine,
            self.sizes,
            weights,
            list(map(pointer, self.biases)),
            *given,
            pointer(self.offset),
            *outcome,
        )
        assert self.tile, "does not fit"
        if not keep:
            return [y, g, norms]
        with_g = self.norms or self.gbar is not None
        sources = [self.x, self.cotangent if with_g else None, *self.weights, *self.biases]
        if wanted is not None:
            sources = [t if flag else None for t, flag in zip(sources, wanted, strict=True)]
        results = [nothing_like(t) for t in sources]
        pointers = list(map(pointer, results))
        assert module.push_adjoint(
            self.arithmetic,
            machine,
            self.sizes,
            weights,
            *given,
            pointer(kept),
            pointer(self.ybar),
            pointer(g if self.norms else self.gbar),
            pointer(self.norm_weights),
            *pointers[:2],
            pointers[2 : 2 + depth],
            pointers[2 + depth :],
        )
        return [y, g, norms, *results]

    def errors(self, tolerance=None, **options):
        """Which results are off by more than the tolerance, relative to their largest number."""
        tolerance = TOLERANCE[self.arithmetic] if tolerance is None else tolerance
        wrong = []
        for i, (mine, exact) in enumerate(zip(self.run(**options), self.reference(), strict=False)):
            if mine is None:
                continue
            scale = max(exact.abs().max().item(), 0.1) if exact.numel() else 1
            error = (mine.double() - exact).abs().max().item() / scale if exact.numel() else 0
            if not error <= tolerance:
                wrong.append((i, error))
        return wrong

    def check(self, **options):
        wrong = self.errors(**options)
        assert not wrong, f"results and errors: {wrong}"


SIZES = [(3, 17, 1), (1, 65, 3, 1), (17, 8, 65, 3), (2, 64, 64, 1), (33, 1), (5, 17)]


@pytest.mark.parametrize("arithmetic", STORAGE)
@pytest.mark.parametrize("widths", SIZES, ids=str)
def test_sizes(widths, arithmetic):
    kinks = arithmetic in ("float64", "float32")  # in low precision, some z are on their other side
    for activation in ("leaky_relu", "softplus") if kinks else ("softplus",):
        Problem(widths, activation, rows=19, arithmetic=arithmetic).check()
        Problem(widths, activation, rows=3, stack=3, arithmetic=arithmetic, norms=True, offset=True).check()


@pytest.mark.parametrize("arithmetic", STORAGE)
@pytest.mark.parametrize("activation", CASES)
def test_activations(activation, arithmetic):
    if arithmetic != "float64" and CASES[activation][1][0] in (30, 100):
        pytest.skip("the angle itself is off in low precision")
    for last in (activation, "identity"):
        Problem((3, 17, 5), [activation, last], stack=2, arithmetic=arithmetic, bias=last == activation).check()


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("given", ["y", "g", "yg"])
@pytest.mark.parametrize("cotangent", [False, True])
def test_adjoints_that_are_given(given, cotangent, outputs, activation):
    for norms in (False, True) if "g" in given else (False,):
        problem = Problem((3, 17, 4, outputs), activation, cotangent=cotangent, given=given, norms=norms)
        problem.check()
        problem.check(keep=False)


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "mixed"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_wanted_gradients(outputs, activation):
    """Each alone, all but each, and none from some layer downwards."""
    activations = ["tanh", "relu", "identity"] if activation == "mixed" else activation
    for given in ("g", "yg", "y"):
        problem = Problem((3, 9, 4, outputs), activations, given=given)
        for i in range(8):
            for wanted in ([j == i for j in range(8)], [j != i for j in range(8)]):
                problem.check(wanted=wanted)
        for first in range(1, 3):
            layers = [layer >= first for layer in range(3)]
            problem.check(wanted=[False, False, *layers, *layers])


@pytest.mark.parametrize("arithmetic", ["float64", "float32", "float16"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_losses_on_top(activation, loss, arithmetic):
    for given in ("g", "yg"):
        Problem((5, 17, 3), activation, rows=7, loss=loss, arithmetic=arithmetic, given=given, norms=True).check()


def test_classes_as_targets():
    target = torch.tensor([2, 0, -100, 1, 2, 0, 1])
    for activation in ("relu", "tanh"):
        Problem((5, 17, 3), activation, rows=7, loss="cross entropy", target=target).check()


@pytest.mark.parametrize("arithmetic", STORAGE)
@pytest.mark.parametrize("widths", [(2, 128, 128, 1), (16, 40, 129, 3)], ids=str)
def test_large_and_small_tiles(widths, arithmetic):
    """Many rows, so that tiles are large and each block has several; weights that do not fit at once."""
    for rows in (150, 83):
        Problem(widths, "silu", rows=rows, arithmetic=arithmetic, norms=True).check(multiprocessors=1)


@pytest.mark.parametrize("arithmetic, kilobytes", [("float64", 170), ("float32", 90), ("tf32", 90), ("float16", 50)])
def test_weights_that_do_not_fit_at_once(arithmetic, kilobytes):
    problem = Problem((2, 128, 128, 1), "silu", rows=35, arithmetic=arithmetic, norms=True)
    problem.check(multiprocessors=1, shared_bytes=kilobytes << 10)
    assert problem.tile < 0


def test_slices_of_the_batch():
    Problem((3, 17, 5), "tanh", rows=700, stack=2).check(multiprocessors=8)
    Problem((3, 17, 1), "relu", rows=700).check(multiprocessors=8, wanted=[True] * 4 + [False] * 2)


def test_a_line_more_than_the_gradients_take_at_a_time():
    Problem((3, 17, 5), "tanh", rows=33, given="y").check()
    Problem((3, 17, 5), "tanh", rows=11, stack=2).check()
    Problem((3, 17, 1), "relu", rows=33).check()


def test_empty_batch():
    results = Problem((3, 17, 5), "tanh", rows=0).run()
    assert all(not tensor.any() for tensor in results if tensor is not None)


def integers(*shape):
    """Small and sparse: with ReLU, every number on the way is an integer that all formats hold."""
    return torch.randint(-1, 2, shape).float() * (torch.rand(shape) < 0.3)


@pytest.mark.parametrize("arithmetic", STORAGE)
@pytest.mark.parametrize("outputs", [1, 8])
@pytest.mark.parametrize("widths", [(7, 21), (16, 64), (5, 128)], ids=str)
def test_exact_where_all_numbers_are_small_integers(widths, outputs, arithmetic):
    problem = Problem((*widths, outputs), "relu", rows=40, arithmetic=arithmetic, draw=integers)
    wrong = problem.errors(tolerance=0, multiprocessors=1)
    assert not wrong, wrong


@pytest.mark.parametrize("order", range(3))
def test_orders_of_threads(order):
    for arithmetic in ("float32", "tf32", "bfloat16"):
        for shared in (227 << 10, 30 << 10):
            problem = Problem((3, 33, 20, 2), "tanh", rows=21, stack=2, arithmetic=arithmetic, norms=True)
            problem.check(order=order, shared_bytes=shared)


@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
def test_a_barrier_that_is_passed_over_shows(arithmetic):
    """In some order of threads; of both sweep kernels together, that with the loss on top in both."""
    problem = Problem((3, 33, 17, 3), "tanh", rows=16, loss="mean square", arithmetic=arithmetic)
    for barrier in range(12):
        outcomes = [problem.errors(order=order, skipped_barrier=barrier) for order in range(3)]
        assert any(outcomes), f"nobody needs barrier {barrier}"


def test_too_little_shared_memory_shows():
    problem = Problem((3, 33, 20, 2), "tanh", rows=16, arithmetic="float32")
    with pytest.raises(RuntimeError, match="beyond shared memory"):
        problem.run(missing_bytes=4096)


def test_networks_that_do_not_fit_are_declined():
    with pytest.raises(AssertionError, match="does not fit"):
        Problem((2, 300, 300, 1), "tanh", arithmetic="float32").run()
    Problem((2, 256, 256, 1), "tanh", arithmetic="bfloat16").check()


def test_numbers_at_any_address():
    problem = Problem((3, 17, 5), "tanh", arithmetic="float32")
    for name in ("x", "cotangent", "ybar", "gbar"):
        tensor = getattr(problem, name)
        shifted = torch.empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
        setattr(problem, name, shifted)
    problem.weights = [torch.empty(w.numel() + 3)[3:].view(w.shape).copy_(w) for w in problem.weights]
    problem.check()
