"""The CUDA kernels of wide networks, a product a layer and sweep, run on the CPU, against autograd in float64."""

from functools import partial

import pytest

from . import native
from .test_activation import CASES
from .test_cuda_mlp import LOSSES, STORAGE, Problem, integers

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C++ compiler for x86-64")

Problem = partial(Problem, layerwise=True)


@pytest.mark.parametrize("arithmetic", STORAGE)
@pytest.mark.parametrize("widths", [(3, 17, 1), (1, 65, 3, 1), (8, 136, 16, 3), (33, 1)], ids=str)
def test_sizes(widths, arithmetic):
    """Ragged and whole, by copies of pieces and of single numbers; tiles of both sizes."""
    kinks = arithmetic in ("float64", "float32")  # in low precision, some z are on their other side
    for activation in ("leaky_relu", "silu") if kinks else ("silu",):
        Problem(widths, activation, rows=130, arithmetic=arithmetic).check(multiprocessors=1)
        Problem(widths, activation, rows=3, stack=3, arithmetic=arithmetic, norms=True, offset=True).check()


@pytest.mark.parametrize("arithmetic", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("activation", CASES)
def test_activations(activation, arithmetic):
    if arithmetic != "float64" and CASES[activation][1][0] in (30, 100):
        pytest.skip("the angle itself is off in low precision")
    for last in (activation, "identity"):
        Problem((3, 17, 5), [activation, last], stack=2, arithmetic=arithmetic, bias=last == activation).check()


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("given", ["y", "g", "yg"])
def test_adjoints_that_are_given(given, outputs, activation):
    for cotangent in (False, True):
        for norms in (False, True) if "g" in given else (False,):
            problem = Problem((3, 17, 4, outputs), activation, cotangent=cotangent, given=given, norms=norms)
            problem.check()
            problem.check(keep=False)


@pytest.mark.parametrize("activation", ["leaky_relu", "mixed"])
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


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_losses_on_top(activation, loss):
    for arithmetic in ("float64", "float16"):
        for given in ("g", "yg"):
            Problem((5, 17, 3), activation, rows=7, loss=loss, arithmetic=arithmetic, given=given, norms=True).check()


def test_slices_of_the_batch():
    Problem((3, 17, 5), "tanh", rows=700, stack=2).check(multiprocessors=8)
    Problem((3, 17, 1), "relu", rows=700).check(multiprocessors=8, wanted=[True] * 4 + [False] * 2)
    Problem((8, 17, 1), "relu", rows=2000, arithmetic="bfloat16").check(multiprocessors=8)


def test_empty_batch():
    results = Problem((3, 17, 5), "tanh", rows=0).run()
    assert all(not tensor.any() for tensor in results if tensor is not None)


@pytest.mark.parametrize("arithmetic", STORAGE)
@pytest.mark.parametrize("widths", [(7, 21, 8), (16, 136, 1)], ids=str)
def test_exact_where_all_numbers_are_small_integers(widths, arithmetic):
    """No number of any product is lost, doubled or in the wrong place."""
    wrong = Problem(widths, "relu", rows=150, arithmetic=arithmetic, draw=integers).errors(
        tolerance=0, multiprocessors=1
    )
    assert not wrong, wrong


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("arithmetic", ["float32", "tf32", "bfloat16"])
def test_orders_of_threads(arithmetic, order):
    """Forward, asynchronous copies land at once; else at the last moment."""
    for widths in ((72, 136, 2), (73, 20, 2)):
        Problem(widths, "tanh", rows=21, stack=2, arithmetic=arithmetic, norms=True).check(order=order)


@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
def test_a_barrier_that_is_passed_over_shows(arithmetic):
    """In some order of threads: the first steps of the main loop, and those around the sums."""
    problem = Problem((160, 40, 160), "tanh", rows=40, arithmetic=arithmetic)
    for barrier in range(7):
        outcomes = [problem.errors(order=order, skipped_barrier=barrier) for order in range(3)]
        assert any(outcomes), f"nobody needs barrier {barrier}"


def test_too_little_shared_memory_shows():
    with pytest.raises(RuntimeError, match="beyond shared memory"):
        Problem((64, 72, 2), "tanh", rows=70, arithmetic="float32").run(missing_bytes=2048)


def test_numbers_at_any_address():
    problem = Problem((8, 16, 8), "tanh", arithmetic="float32")
    for name in ("x", "cotangent", "ybar", "gbar"):
        tensor = getattr(problem, name)
        setattr(problem, name, tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor))
    problem.weights = [w.new_empty(w.numel() + 3)[3:].view(w.shape).copy_(w) for w in problem.weights]
    problem.check()
