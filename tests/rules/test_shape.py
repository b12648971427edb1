"""Operations that move values: reshapes with sizes known or read from the input, permutations, padding."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from gradreg_fast.convert import graph_of
from tests.parity import assert_parity, assert_primitives, is_opaque, jacobian_sqnorm, value_and_vjp

pytestmark = pytest.mark.usefixtures("float64")

# From [B, 2, 3, 4] to anything with 24 elements a sample.
MOVES = {
    "view": lambda h: h.view(3, 24),
    "view with -1": lambda h: h.view(h.size(0), -1),
    "view of a size": lambda h: h.view(h.shape[0], h.shape[1], -1),
    "view of a tuple": lambda h: h.view((h.shape[0], 24)),
    "view with arithmetic": lambda h: h.view(h.size(0), h.size(1) * h.size(2), h.size(3)),
    "view with negative index": lambda h: h.view(-1, h.shape[1] * h.shape[-2] * h.shape[-1]),
    "size unpacked": lambda h: h.reshape(h.size()[0], 24),
    "reshape": lambda h: h.reshape(-1, 6, 4),
    "torch reshape": lambda h: torch.reshape(h, (-1, 24)),
    "flatten": lambda h: h.flatten(1),
    "flatten some": lambda h: h.flatten(1, 2),
    "torch flatten": lambda h: torch.flatten(h, start_dim=1),
    "unflatten": lambda h: h.unflatten(3, (2, 2)),
    "torch unflatten": lambda h: torch.unflatten(h, 3, (2, -1)),
    "unsqueeze": lambda h: h.unsqueeze(2),
    "unsqueeze the end": lambda h: torch.unsqueeze(h, -1),
    "squeeze": lambda h: h.unsqueeze(1).squeeze(1),
    "squeeze nothing": lambda h: torch.squeeze(h, 2),
    "permute": lambda h: h.permute(0, 2, 3, 1),
    "permute tuple": lambda h: h.permute((0, 3, 1, 2)),
    "permute negative": lambda h: torch.permute(h, (0, -1, 1, 2)),
    "transpose": lambda h: h.transpose(1, 3),
    "transpose negative": lambda h: torch.transpose(h, -1, -2),
    "transpose keywords": lambda h: torch.transpose(h, dim0=1, dim1=2),
    "permute, contiguous": lambda h: h.permute(0, 2, 3, 1).contiguous(),
    "channels last": lambda h: h.contiguous(memory_format=torch.channels_last),
    "clone": lambda h: h.clone(),
    "there and back": lambda h: h.permute(1, 0, 2, 3).permute(1, 0, 2, 3),
    "samples last": lambda h: h.flatten(1).t().t(),
    "shuffle": lambda h: h.view(h.size(0), 1, 2, 3, 4).transpose(1, 2).reshape(h.size(0), -1),
    "index": lambda h: h[:, :, 1:],
    "ellipsis": lambda h: h[..., 0],
    "none": lambda h: h[:, None],
    "flip": lambda h: h.flip(1),
    "movedim": lambda h: h.movedim(1, 3),
    "pad": lambda h: functional.pad(h, (1, 1, 0, 2), value=0.5),
    "einops by hand": lambda h: torch.einsum("bchw->bwhc", h),
    "property T": lambda h: h.flatten(1).T.T,
    "expand": lambda h: h.unsqueeze(1).expand(-1, 2, -1, -1, -1),
    "repeat": lambda h: h.repeat(1, 2, 1, 1),
    "roll": lambda h: h.roll(1, 2),
    "unbind": lambda h: h.unbind(1)[0] * h.unbind(1)[1],
    "split": lambda h: h.split([1, 1], 1)[1],
}


class Moved(nn.Module):
    """A move between two smooth (or piecewise linear) layers."""

    def __init__(self, move, outputs=2, smooth=True):
        super().__init__()
        self.move = move
        self.smooth = smooth
        self.first = nn.Conv2d(1, 2, 2)
        moved = move(torch.zeros(3, 2, 3, 4))
        self.last = nn.Linear(moved[0].numel(), outputs)

    def forward(self, x):
        h = self.first(x)
        h = torch.tanh(h) if self.smooth else torch.relu(h)
        h = self.move(h)
        h = torch.tanh(h) if self.smooth else torch.relu(h)
        return self.last(h.flatten(1))


@pytest.mark.parametrize(("outputs", "smooth"), [(2, True), (1, False)], ids=["smooth", "critic"])
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moves(move, outputs, smooth):
    model = Moved(move, outputs, smooth)
    assert not is_opaque(model)
    assert_primitives(model, torch.randn(3, 1, 4, 5))


@pytest.mark.parametrize("move", [lambda h: h.rot90(1, (2, 3)), lambda h: torch.cat(h.chunk(2, 1), 1)])
def test_others_are_left_to_autograd(move):
    model = Moved(move)
    assert is_opaque(model)
    assert_primitives(model, torch.randn(3, 1, 4, 5))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_sizes_are_read_at_every_call(size):
    model = Moved(MOVES["view with arithmetic"])
    for rows in (size, 3, size):
        assert_primitives(model, torch.randn(rows, 1, 4, 5))


def test_unflatten_module():
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2), nn.Tanh(), nn.Flatten(1, -1)
    )
    assert not is_opaque(model)
    assert_primitives(model, torch.randn(4, 5))


def test_squeezed_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(1, 5), nn.Softplus(), nn.Linear(5, 1))

        def forward(self, x):
            return self.layers(x.unsqueeze(-1)).squeeze(-1)

    assert_primitives(Net(), torch.randn(4))


def test_the_input_itself():
    class Net(nn.Module):
        def forward(self, x):
            return x

    for model in (nn.Identity(), nn.Sequential(), Net(), nn.Flatten()):
        assert_primitives(model, torch.randn(3, 4))
        assert_primitives(model, torch.randn(3, 1))


class Positions(nn.Module):
    """Moves the positions of a sample into the batch's dimension and back, a common idiom."""

    def __init__(self, width, outputs, smooth=True):
        super().__init__()
        self.inner = nn.Linear(3, width)
        self.last = nn.Linear(4 * width, outputs)
        self.smooth = smooth

    def forward(self, x):
        h = self.inner(x.view(x.size(0) * 4, 3))
        h = torch.tanh(h) if self.smooth else torch.relu(h)
        return self.last(h.view(x.size(0), -1))


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("width", "outputs"), [(7, 1), (7, 3), (1, 9), (2, 30)])
def test_positions_as_samples(width, outputs, smooth):
    """Each row of the inner batch is not a sample of its own."""
    assert_primitives(Positions(width, outputs, smooth), torch.randn(5, 4, 3))


def test_every_plan_with_positions_as_samples(monkeypatch):
    model, x = Positions(2, 6), torch.randn(5, 4, 3)
    graph = graph_of(model)
    _, linearization = gradreg_fast.engine.linearize(graph, x, graph.tensors(x))
    for plan in gradreg_fast.planner.candidates(linearization, None):
        monkeypatch.setattr(gradreg_fast.planner, "plan", lambda *_, plan=plan: plan)
        assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x)


def test_samples_mixed_by_reshapes():
    """Every sample meets every other one, without a node that says so."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 1), nn.Linear(4, 5)

        def forward(self, x):
            h = torch.tanh(self.first(x))  # [4, 1]
            return self.last(torch.tanh(h + h.view(1, 4)))  # [4, 5]

    x = torch.randn(4, 3)
    assert_parity(Net(), gradreg_fast.value_and_vjp, value_and_vjp, x)
    assert_parity(Net(), gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x)


def test_samples_mixed_by_a_broadcast():
    """A piecewise linear critic that compares every sample with every other one."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(4, 1)

        def forward(self, x):
            h = self.first(x)  # [4, 2]
            pairs = torch.relu(h.unsqueeze(1) + h)  # [4, 4, 2]
            return self.last(torch.relu(self.middle(pairs).flatten(1)))

    assert not is_opaque(Net())
    assert_primitives(Net(), torch.randn(4, 3))


def test_sizes_read_between_an_activation_and_a_pooling():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(12, 2)

        def forward(self, x):
            h = torch.relu(self.first(x))
            rows, columns = h.shape[2], h.shape[3]
            return self.last(functional.max_pool2d(h, 2).view(-1, 2 * (rows // 2) * (columns // 2)))

    assert_primitives(Net(), torch.randn(3, 1, 4, 6))
