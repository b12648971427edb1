"""The squared norm of a ReLU network's whole Jacobian from each sample's active units alone, by compiled kernels.

Of a hidden matrix a sample's Jacobian meets only the rows of the active units above it and the columns of those below:
a quarter of the products at half activity, for the cotangents, the tangents and the weights' gradients alike. The
stacks of K cotangents and tangents hold active units only.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from gradreg_fast.backend import KERNELS, available, current, insists
from gradreg_fast.contraction import gram
from gradreg_fast.engine import Linearization, Terms
from gradreg_fast.mlp import KINDS, mlp_of
from gradreg_fast.planner import Plan, first_linear, known_shapes, width
from gradreg_fast.rules.activation import ReLU
from gradreg_fast.rules.base import Rule, has_numbers, is_plain
from gradreg_fast.rules.linear import Linear

RELU = KINDS[ReLU][0]

# Up to a widest layer: what a product of active rows and columns costs for each of its multiplications, and what
# gathering these from a whole matrix costs, in dense products of it with one cotangent; and what transposing it for the
# push costs, in products with one row. Measured with one thread, 6 to 100 outputs and 10 to 90% of the units active.
COSTS = ((256, 0.8, 9.0), (512, 0.8, 14.0), (math.inf, 1.1, 18.0))
TRANSPOSING = 40.0


def preferred(linearization: Linearization, plan: Plan) -> Plan:
    """The plan with active units only, where kernels serve this network and are chosen; else the plan itself."""
    graph = linearization.graph
    stacked = plan.cut == graph.seed and not plan.closed_form
    if not (stacked and current() != "torch" and is_relu_network(linearization)):
        return plan
    device = linearization.like.device
    if not (insists(device) or pays(linearization)) or not available(device):
        return plan
    first = first_linear(linearization) if gram_pays(linearization) else 0
    return replace(plan, bottom=first, top=graph.seed, active=True)


# On CUDA devices there are no such kernels, by count. A sample's gathered rows serve its own K cotangents alone: with a
# share a of n units above and m below, s a n m bytes come from the second-level cache (5.5 TB/s on an H100) for its 2 K
# a^2 n m operations, where the dense product takes 2 K n m at R operations a second, with W shared by all samples. In
# units of the dense product's time that is s a R / (11e12 K), and a^2 times what our rate is below R. For a = 1/2:
#
#                                                     K = 10   K = 100
#   float32, 40 TFLOP/s either way      7 / K + 0.25    0.98      0.32
#   TF32, the library's 330, our 150   60 / K + 0.55    6.6       1.15
#   bfloat16, 650 and 300              59 / K + 0.54    6.4       1.13
#
# The weights' gradient stays dense: a scattered one adds 8 a n m bytes a sample. So tensor cores win wherever they may
# serve, and exact float32 would gain (1 + 1 + 1) / (0.32 + 0.32 + 1) = 1.8 at K = 100, nothing at 10.


def is_relu_network(linearization: Linearization) -> bool:
    """Whether these are fully connected layers, two hidden ones at least, with ReLU between them, on a CPU."""
    mlp = mlp_of(linearization.graph)
    if mlp is None or mlp.low or len(mlp.kinds) < 3 or mlp.kinds != (RELU,) * (len(mlp.kinds) - 1) + (0,):
        return False
    tensors = [*hidden(linearization), *weights(linearization)]
    return all(
        is_plain(tensor)
        and tensor.dim() == 2
        and KERNELS.get(tensor.device.type) == "cpp"
        and tensor.dtype == tensors[0].dtype
        and tensor.dtype in (torch.float32, torch.float64)
        for tensor in tensors
    )


def pays(linearization: Linearization) -> bool:
    """Whether the kernels are faster than the PyTorch lines, by `COSTS` and the share of active units."""
    layers = hidden(linearization)
    widest = max(layer.shape[1] for layer in layers)
    product, gathering = next(costs for bound, *costs in COSTS if widest <= bound)
    active = active_share(layers)
    outputs = max(width(linearization, linearization.graph.seed), 1)
    rows = max(batch_size(linearization) * outputs, 1)
    return product * active**2 + gathering * active / outputs + TRANSPOSING / rows < 1


def active_share(layers: list[Tensor]) -> float:
    """Active units of all; a tracer, who sees none, expects one half."""
    if not all(map(has_numbers, layers)):
        return 0.5
    return sum(int(layer.count_nonzero()) for layer in layers) / max(sum(layer.numel() for layer in layers), 1)


def batch_size(linearization: Linearization) -> int:
    """How many samples there are, or a tracer's example has."""
    return known_shapes(linearization)[0][0]


def gram_pays(linearization: Linearization) -> bool:
    """Whether ``W_1 W_1^T`` costs less, at half activity, than to pull to the input and push from there: measured."""
    n, d = weights(linearization)[0].shape
    rows = batch_size(linearization) * width(linearization, linearization.graph.seed)
    return n * (2 * d + 0.75 * rows) < 3 * rows * d


def hidden(linearization: Linearization) -> list[Tensor]:
    """The hidden layers, after ReLU: ``[B, n]``."""
    return [linearization.saved[i][0] for i in nodes_of(linearization, ReLU)]


def weights(linearization: Linearization) -> list[Tensor]:
    """The matrices, in order."""
    return [linearization.parameters[i][0] for i in nodes_of(linearization, Linear)]


def nodes_of(linearization: Linearization, rule: type[Rule]) -> list[int]:
    """The nodes with this rule, in order."""
    return [i for i, node in enumerate(linearization.graph.nodes) if node is not None and type(node.rule) is rule]


def squared_norm(linearization: Linearization, plan: Plan, seeds: None, keep: list[bool] | None) -> tuple:
    """As `contraction.squared_norm`."""
    first, *others = weights(linearization)
    bottom = gram(first) if plan.bottom else first
    norms, cotangents = torch.ops.gradreg_fast.active_sqnorm(
        hidden(linearization), [bottom, *others], plan.bottom != 0, keep is not None
    )
    return norms.clamp_min(0), (bottom, cotangents)


def add_gradients(
    linearization: Linearization, plan: Plan, state: tuple, factors: Tensor, terms: Terms, scale: None, final: bool
) -> None:
    """As `contraction.add_gradients`, of ``sum_b factors_b norm_b``."""
    bottom, cotangents = state
    first, *others = weights(linearization)
    gradients = [terms.of(linearization.graph.nodes[i]) for i in nodes_of(linearization, Linear)]
    wanted = [gradient.wants(0) for gradient in gradients]
    results = torch.ops.gradreg_fast.active_sqnorm_gradients(
        hidden(linearization), [bottom, *others], plan.bottom != 0, cotangents, 2 * factors, wanted
    )
    if plan.bottom and wanted[0]:
        results[0] = results[0] @ first
    for gradient, result in zip(itertools.compress(gradients, wanted), results, strict=True):
        gradient.add(0, lambda result=result: result)
