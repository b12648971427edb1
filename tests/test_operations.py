"""Every registered operation: its schema and what tracers are told of its results, in all layouts, with no samples."""

from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from gradreg_fast.backend import usable

from .csrc.native import has_compiler
from .csrc.operations_on_cpu import library

pytestmark = pytest.mark.skipif(usable("cpp")[0] is None, reason="no compiled library")
ON_CUDA = torch.get_default_device().type == "cuda"


def strided(tensor):
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def with_gaps(tensor):
    if not tensor.numel():  # which opcheck cannot copy
        return tensor
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


def expanded(tensor):
    return tensor[:1].expand_as(tensor)


def channels_last(tensor):
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3) if tensor.dim() > 3 else tensor


LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "channels last": channels_last,
    "strided": strided,
    "gaps": with_gaps,
    "expanded": expanded,
}


def mlp(B, laid, namespace, inputs=(6, 112, 600)):
    """Widths that are ragged, multiplied by the kernels, and by PyTorch on the CPU."""
    for n in inputs:
        x, weights, biases = (
            laid(torch.randn(B, n)),
            [laid(torch.randn(4, n)), laid(torch.randn(2, 4))],
            [torch.randn(4), None],
        )
        network, y, g = ([4, 0], [0.0] * 4), laid(torch.randn(B, 2)), laid(torch.randn(3, B, n))
        for stack, cotangent, offset in ((1, None, None), (3, laid(torch.randn(3, B, 2)), g)):
            forward = (x, cotangent, None, offset, weights, biases, *network, 0, stack, False)
            yield "mlp_forward_pull", (*forward, False)
            yield "mlp_forward_pull", (*forward, True)
            kept = namespace.mlp_forward_pull(*forward, True)[3]
            backward = (x, cotangent, None, kept, weights, *network, 0, stack, False)
            yield "mlp_push_adjoint", (*backward, y, g[:stack], None, [1, int(stack > 1), 1, 1, 1, 0])
            yield "mlp_push_adjoint", (*backward, None, g[:stack], torch.randn(B), [0, 0, 1, 0, 0, 0])


def convolutions(B, laid, namespace):
    x, weight = laid(torch.randn(B, 2, 8, 7)), laid(torch.randn(5, 2, 3, 2))
    for options, curved in (
        ([2, 1, 1, 0, 2, 1, 0, 1, 1, 1, 1, 0, 0, 4, 0], True),
        ([2, 1, 1, 2, 1, 1, 1, 2, 2, 2, 2, 0, 0, 1, 1], False),
        ([1, 1, 1, 1, 1, 1, 3, 2, 2, 2, 2, 0, 0, 4, 1], True),
    ):
        phi = (options, [3.0, 20.0])
        yield "conv_forward", (x, weight, torch.randn(5), *phi)
        y, kept = namespace.conv_forward(x, weight, None, *phi)
        xdot, u = laid(torch.randn(3, *x.shape)), laid(torch.randn(3, *y.shape))
        push = (xdot, u, kept, weight, *phi, True, curved, True)
        yield "conv_push", push
        yield "conv_push", (xdot, None, kept, weight, *phi, True, False, False)
        second = namespace.conv_push(*push)[1] if curved else None
        yield "conv_pull", (u[:1], second, x, kept, weight, x.shape, *phi, True, True)
        yield "conv_pull", (u, None, None, kept, weight, x.shape, *phi, True, False)


def convolutions_in_a_row(B, laid, namespace):
    """On CUDA devices, channels last."""

    def images(*shape):
        return torch.randn(*shape[:-3], *shape[-2:], shape[-3]).movedim(-1, -3)

    x, weight = images(B, 2, 8, 7), images(5, 2, 3, 2)
    for kind, size in ((1, (6, 6)), (3, (6, 6))):
        phi = ([1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, kind, 1], [1.0, 20.0])
        yield "image_forward", (x, weight, torch.randn(5), *phi)
        xdot, u, y = images(3, *x.shape), images(3, B, 5, *size), images(B, 5, *size)
        yield "image_push", (xdot, None, y, weight, *phi, True)
        if kind == 3:
            yield "image_push", (xdot, u, y, weight, *phi, False)
        yield "image_pull", (u, weight, x, None, (8, 7), *phi, True)
        yield "image_pull", (u[:1], weight, x, torch.randn(x.numel()), (8, 7), *phi, False)
        yield "image_slope", (u[:1], y, torch.randn(y.numel()), kind, phi[1])
        yield "image_slope", (None, y, torch.randn(y.numel()), kind, phi[1])
        yield "image_gradient", (u, xdot, weight, *phi)


def active_units(B, laid, namespace):
    hidden = [laid(torch.randn(B, 5).relu()), laid(torch.randn(B, 6).relu())]
    for gram in (False, True):
        weights = [laid(torch.randn(*shape)) for shape in ((5, 5 if gram else 7), (6, 5), (3, 6))]
        yield "active_sqnorm", (hidden, weights, gram, False)
        yield "active_sqnorm", (hidden, weights, gram, True)
        _, cotangents = namespace.active_sqnorm(hidden, weights, gram, True)
        yield "active_sqnorm_gradients", (hidden, weights, gram, cotangents, torch.randn(B), [1, 0, 1])


def activations(B, laid, namespace):
    yield "activation", (laid(torch.randn(B, 5)), 4, [0.0, 0.0])


def norms(B, laid, namespace):
    """Without gaps, as all that follow: rules see to that."""
    for laid in (LAYOUTS["contiguous"], channels_last) if B else ():
        x, stack = laid(torch.randn(B, 6, 3, 4)), laid(torch.randn(2, B, 6, 3, 4))
        groups = () if namespace is OPERATIONS and not ON_CUDA else ((B, 2),)  # CUDA's alone take those of samples
        for statistics in ((6,), *groups):
            constants = x, torch.randn(statistics), torch.rand(statistics), torch.randn(6)
            yield "norm_project", (stack, *constants, None, True, False)
            yield "norm_project", (stack[:1], *constants, x[None], False, True)
            yield "norm_meet", (stack, stack, *constants, True)
            yield "norm_meet", (stack, stack, *constants, False)
    for mean in (torch.randn(B), None) if B else ():
        for weight in (torch.randn(5), None):
            x, stack = torch.randn(B, 5), torch.randn(3, B, 5)
            yield "layer_norm_project", (stack, x, mean, torch.rand(B), weight, None, True, False)
            yield "layer_norm_project", (stack[:1], x, mean, torch.rand(B), weight, x[None], False, True)
            yield "layer_norm_meet", (stack, stack, x, mean, torch.rand(B), weight, True)


def elementwise(B, laid, namespace):
    z, u, xdot, phi = torch.randn(B, 5), torch.randn(3, B, 5), torch.randn(3, B, 5), (3, [1.0, 20.0])
    for name in ("activate", "activate_"):
        yield name, (z, *phi, False)
        yield name, (z, 1, [0.0, 0.0], True)
    yield "activation_slope", (z, u, *phi)
    yield "activation_slope_", (z, u, *phi)
    yield "activation_meet", (z, u, xdot, *phi, True)
    yield "activation_meet", (z, u, xdot, *phi, False)
    yield "activation_bend", (z, z, z, *phi, False)


def maxima(B, laid, namespace):
    """Without gaps."""
    for laid in (LAYOUTS["contiguous"], channels_last):
        windows = ([3, 2, 2, 1, 1, 0, 6, 5, 3, 4, laid is channels_last], 2, [0.2, 0.0])
        z, xdot = laid(torch.randn(B, 3, 6, 5)), laid(torch.randn(2, B, 3, 6, 5))
        yield "max_pool", (z, *windows)
        y, code = namespace.max_pool(z, *windows)
        yield "max_pool_push", (code, xdot, *windows)
        yield "max_pool_pull", (code, laid(torch.randn(2, *y.shape)), *windows)


def averages(B, laid, namespace):
    """Without gaps."""
    for laid in (LAYOUTS["contiguous"], channels_last):
        windows = [3, 3, 2, 1, 1, 0, 6, 5, 3, 3, laid is channels_last, True, 0]
        z, xdot = laid(torch.randn(B, 3, 6, 5)), laid(torch.randn(2, B, 3, 6, 5))
        u = laid(torch.randn(2, B, 3, 3, 3))
        for kind in (1, 6):
            phi = windows, kind, [0.0, 0.0]
            yield "average_pool", (z, *phi)
            kept = namespace.average_pool(z, *phi)[1] if kind == 1 else z
            yield "average_pool_push", (kept, xdot, *phi)
            yield "average_pool_pull", (kept, u, None, *phi)
        yield "average_pool_pull", (z, u[:1], z, *phi)
        yield "average_pool_meet", (u, xdot, *phi)


def passes(B, laid, namespace):
    u, xdot = torch.randn(3, B, 5), torch.randn(3, B, 5)
    yield "dot_samples", (u, xdot)
    yield "dot_samples", (u.bfloat16(), xdot.bfloat16())
    yield "scale_samples", (u, None, torch.randn(B))
    yield "scale_samples", (u, xdot, torch.randn(B))


CPU = (mlp, convolutions, active_units, activations, elementwise, maxima, averages, norms)
OPERATIONS = torch.ops.gradreg_fast


@pytest.fixture(scope="module")
def cuda_namespace():
    """Where the CUDA operations are: on a device, or run on the CPU."""
    if not ON_CUDA and not has_compiler():
        pytest.skip("no C++ compiler for x86-64")
    return OPERATIONS if ON_CUDA else library()[0]


def facts(results):
    """Shapes, dtypes and strides of nested results."""
    if results is None:
        return None
    if isinstance(results, torch.Tensor):
        return tuple(results.shape), results.dtype, results.stride() if results.numel() else None
    return [facts(result) for result in results]


def fake(mode, device, tensor):
    """What a tracer takes for this tensor on a device that need not be there."""
    return FakeTensor(mode, tensor.to("meta"), torch.device(device))


@pytest.mark.skipif(ON_CUDA, reason="half of them are for tensors on the CPU")
def test_every_operation_has_an_example(cuda_namespace):
    names = map(str, torch._C._dispatch_get_all_op_names())
    registered = {name.partition("::")[2] for name in names if name.startswith("gradreg_fast::")}
    laid, families = LAYOUTS["contiguous"], [*((family, OPERATIONS) for family in CPU)]
    families += [(passes, cuda_namespace), (convolutions_in_a_row, cuda_namespace)]
    shown = {name for family, namespace in families for name, _ in family(2, laid, namespace)}
    assert shown == registered


@pytest.mark.skipif(ON_CUDA, reason="the CPU's operations")
@pytest.mark.parametrize("B", [5, 0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", CPU, ids=lambda family: family.__name__)
def test_on_the_cpu(family, layout, B):
    for name, arguments in family(B, LAYOUTS[layout], OPERATIONS):
        torch.library.opcheck(
            getattr(OPERATIONS, name).default, arguments, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("B", [5, 0])
@pytest.mark.parametrize("layout", [*LAYOUTS, None])
def test_on_cuda_devices(layout, B, cuda_namespace):
    """What tracers are told of tensors there, without one against the same sources run on the CPU."""
    device = "cpu" if layout is None else "cuda:0"  # where a CPU build's tracers know few functions
    families = (elementwise, maxima, averages, passes, norms, convolutions_in_a_row)
    families = families if layout is None else (partial(mlp, inputs=[6, 112]),)
    for name, arguments in (a for family in families for a in family(B, LAYOUTS.get(layout), cuda_namespace)):
        if ON_CUDA:
            torch.library.opcheck(getattr(OPERATIONS, name).default, arguments)
            continue
        mode = FakeTensorMode()
        fakes = tree_map_only(torch.Tensor, partial(fake, mode, device), arguments)
        with mode:
            told = getattr(OPERATIONS, name)(*fakes)
        assert facts(told) == facts(getattr(cuda_namespace, name)(*arguments)), name
