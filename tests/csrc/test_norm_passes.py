"""Normalisations' passes on CUDA devices, run on the CPU: against float64, networks against autograd."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.convert import graph_of
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.norm_passes import Passes
from tests.parity import assert_primitives

from .operations_on_cpu import ORDERS, library

VARIANTS = [(dtype, 0) for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)]
VARIANTS += [(torch.float32, order) for order in ORDERS[1:]]
SHAPES = {  # and groups of channels, None: of the batch's
    "vectors": ((5, 3), None),
    "more channels than lanes": ((4, 67), None),
    "images": ((3, 5, 4, 7), None),
    "one channel": ((2, 1, 3, 3), None),
    "many elements": ((9, 2, 41, 43), None),
    "sequences": ((4, 3, 11), None),
    "groups of vectors": ((3, 6), 2),
    "groups of images": ((2, 66, 3, 5), 3),
    "groups of large images": ((2, 6, 31, 67), 3),
    "instances": ((3, 5, 2, 9), 5),
    "instances in parts": ((2, 3, 131, 133), 3),
}
ROWS = {"one": (1, 1), "short": (9, 5), "a warp's": (3, 133), "a block's": (3, 2049), "all blocks'": (4099, 3)}
ROWS |= {"as much shared memory as nobody asks for": (1, 6143), "beyond shared memory": (2, 24577)}
LARGE = "all blocks'", *list(ROWS)[-2:]


class Case:
    """A normalisation of x in this dtype: its operations, and in float64 what they are to return."""

    def __init__(self, operations, names, x, dims, groups, weight, centred=True):
        self.names = [getattr(operations, name) for name in names]
        self.x, self.dims, self.groups, self.weight, self.centred = x, dims, groups, weight, centred
        grouped = self.grouped(x.double())
        mean = grouped.mean(dims) if centred else None
        inverse = (grouped.var(dims, unbiased=False) + 1e-3).rsqrt()
        if not centred:
            inverse = (grouped.square().mean(dims) + 1e-3).rsqrt()
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.constants = x, None if mean is None else mean.to(wide), inverse.to(wide), weight.to(wide)

    def grouped(self, x):
        return x.unflatten(1, (self.groups, -1)) if self.groups else x

    def __call__(self, x, weight):
        grouped = self.grouped(x)
        mean = grouped.mean(self.dims, keepdim=True) if self.centred else 0
        variance = (grouped - mean).square().mean(self.dims, keepdim=True)
        xhat = ((grouped - mean) * (variance + 1e-3).rsqrt()).view_as(x)
        return xhat * (weight.view(-1, *(1,) * (x.dim() - 2)) if self.groups is not None or 0 in self.dims else weight)

    def check(self, u, v, d, second):
        """J v, J^T d, the second-order terms and the weight's gradient, each against autograd in float64."""
        dtype, (project, meet) = self.x.dtype, self.names
        exact, gamma = self.x.double().requires_grad_(), self.weight.clone().requires_grad_()
        y = self(exact, gamma)

        def along(one):
            return torch.func.jvp(lambda x: self(x, self.weight), (exact.detach(),), (one.double(),))[1]

        wanted = torch.stack([along(one) for one in v])
        (result,) = project(v, *self.constants, None, True, False)
        near(result, wanted, dtype)
        xbar, weight_bar = torch.autograd.grad(y, (exact, gamma), d.double(), retain_graph=True)
        result, sums = project(d[None], *self.constants, second, False, True)
        near(result[0], xbar + second.double(), dtype)
        near(sums[0], weight_bar, dtype)
        near(sums[1], d.double().sum_to_size(gamma.view(gamma.shape + (1,) * self.trailing()).shape).view(-1), dtype)

        pulled = [torch.autograd.grad(y, exact, one.double(), create_graph=True)[0] for one in u]
        near(project(u, *self.constants, None, False, False)[0], torch.stack(pulled).detach(), dtype)
        total = sum((one * other.double()).sum() for one, other in zip(pulled, v, strict=True))
        xbar, weight_bar = torch.autograd.grad(total, (exact, gamma))
        found, gradient, ydot = meet(u, v, *self.constants, True)
        near(found, xbar, dtype)
        near(gradient, weight_bar, dtype)
        near(ydot, wanted, dtype)
        assert found.stride() == self.x.stride() and ydot.stride() == v.stride()
        again = meet(u, v, *self.constants, False)
        assert torch.equal(again[0], found) and torch.equal(again[1], gradient)

    def trailing(self):
        return self.x.dim() - 2 if self.groups is not None or 0 in self.dims else 0


def laid(stack, last):
    """Each member of a stack in the layout asked for."""
    return stack.movedim(2, -1).contiguous().movedim(-1, 2) if last else stack.contiguous()


def choose(order):
    if torch.get_default_device().type == "cpu":
        library()[1](order)


@pytest.mark.parametrize("dtype, order", VARIANTS, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", SHAPES)
def test_channels(cuda_operations, name, last, dtype, order):
    choose(order)
    (shape, groups), K = SHAPES[name], 2
    x, d, second = (laid(torch.randn(1, *shape).to(dtype), last)[0] for _ in range(3))
    u, v = (laid(torch.randn(K, *shape).to(dtype), last) for _ in range(2))
    weight = (torch.rand(shape[1]) + 0.5).double()
    dims = [0, *range(2, x.dim())] if groups is None else list(range(2, x.dim() + 1))
    Case(cuda_operations, ("norm_project", "norm_meet"), x, dims, groups, weight).check(u, v, d, second)


@pytest.mark.parametrize(
    "name, dtype, order", [(name, *variant) for name in ROWS for variant in VARIANTS[: 1 if name in LARGE else None]]
)
def test_rows(cuda_operations, name, dtype, order):
    """Layer and root mean square normalisation; rows start off any boundary."""
    choose(order)
    shape, K = ROWS[name], 2
    memory = torch.randn(1 + (2 * K + 3) * shape[0] * shape[1]).to(dtype)[1:].view(2 * K + 3, *shape)
    weight = (torch.rand(shape[1]) + 0.5).double()
    for centred in (True, False):
        operations = ("layer_norm_project", "layer_norm_meet")
        case = Case(cuda_operations, operations, memory[0], [1], None, weight, centred)
        case.check(memory[1 : 1 + K], memory[1 + K : 1 + 2 * K], *memory[1 + 2 * K :])


def near(found, wanted, dtype):
    """Equal up to rounding in this dtype, relative to the largest."""
    limit = {2: 2, 4: 200, 8: 2000}[dtype.itemsize] * torch.finfo(dtype).eps
    assert found.shape == wanted.shape
    assert (found.double() - wanted).abs().max() <= limit * wanted.abs().max().clamp_min(1)


def norms(model, x):
    return [node for node in with_passes(graph_of(model), x).nodes if node and isinstance(node.rule, Passes)]


def batch(affine):
    return nn.BatchNorm2d(3, affine=affine), nn.BatchNorm2d(4), nn.BatchNorm1d(5, momentum=None)


def groups(affine):
    return nn.GroupNorm(3, 3, affine=affine), nn.GroupNorm(2, 4), nn.GroupNorm(1, 5)


def instances(affine):
    return nn.InstanceNorm2d(3, affine=affine), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(5)


def rows(affine):
    return nn.LayerNorm([3, 3, 3], elementwise_affine=affine), nn.LayerNorm([2]), nn.RMSNorm(5, 1e-3, affine)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("make", [batch, groups, instances, rows])
def test_networks(cuda_operations, make, outputs, affine):
    """All sweeps through the passes, against autograd's double backward; buffers as well."""
    first, second, third = make(affine)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3), first, nn.Tanh(), nn.Conv2d(3, 4, 2)),
        *(second, nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)),
        *(third, nn.Softplus(), nn.Linear(5, outputs)),
    )
    x = torch.randn(3, 2, 5, 5)
    assert len(norms(model, x)) == 3
    assert_primitives(model, x)
    assert_primitives(model, x.contiguous(memory_format=torch.channels_last))


def test_frozen_weights_evaluation_and_empty_batches(cuda_operations, float64):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2))
    model[1].weight.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    model[0].requires_grad_(False)
    assert_primitives(model, torch.randn(6, 4))
    assert len(norms(model.eval(), torch.randn(6, 4))) == 1
    for norm in (nn.LayerNorm(4), nn.GroupNorm(2, 4)):
        y, g = gradreg_fast.value_and_vjp(nn.Sequential(norm, nn.Linear(4, 2)), torch.randn(0, 4))
        (y.sum() + g.sum()).backward()
        assert norm.weight.grad.count_nonzero() == 0


def test_wrong_arguments_are_told(cuda_operations):
    x, v, one = torch.randn(3, 4, 5), torch.randn(1, 3, 4, 5), torch.ones(4)
    project, pull = cuda_operations.norm_project, (None, False, False)
    with pytest.raises(RuntimeError, match="mean must be"):
        project(v, x, torch.ones(3), one, None, *pull)
    with pytest.raises(RuntimeError, match="mean must be"):
        project(v, x, torch.ones(3, 3), one, None, *pull)
    with pytest.raises(RuntimeError, match="inverse must be float64 if x is, else float32"):
        project(v, x, one, one.double(), None, *pull)
    with pytest.raises(RuntimeError, match="x must be contiguous or channels last"):
        project(v, x.permute(2, 1, 0), one, one, None, *pull)
    with pytest.raises(RuntimeError, match="u has the wrong size"):
        cuda_operations.norm_meet(v[:, :2], v, x, one, one, None, True)
    with pytest.raises(RuntimeError, match="weight must have 20 numbers"):
        cuda_operations.layer_norm_meet(v, v, x, torch.ones(3), torch.ones(3), one, True)
    with pytest.raises(RuntimeError, match="gradients are those of one adjoint"):
        project(torch.cat([v, v]), x, one, one, None, None, False, True)
