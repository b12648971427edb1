"""How much time the closed form takes off autograd's double backward: an estimate from a graph's nodes and sizes.

Of a step in user's own lines (forward, gradient of x, backward through both). Fitted to 60 networks in float32 on one
thread of a CPU: the architectures of `benchmarks/zoo.py`, some of them smaller, and tiny networks, which lose. All that
were measured at less than 0.95 of autograd's speed are told from all at more than 1.02.
"""

from __future__ import annotations

from gradreg_fast.engine import Linearization
from gradreg_fast.planner import adjoints_are_cotangents
from gradreg_fast.rules.attention import Attention
from gradreg_fast.rules.cast import uncast
from gradreg_fast.rules.conv import Conv
from gradreg_fast.rules.conv_block import ConvBlock
from gradreg_fast.rules.norm import AtOnce, Standardise
from gradreg_fast.rules.opaque import Opaque

# Seconds that a step loses:
NODE = 6e-5  # Python's share of a node's four sweeps beyond the calls that autograd makes, unless it only moves values
OPAQUE = 5e-4  # of a node that autograd runs by itself
# and gains:
NUMBER = 3e-9  # of a node's result: passes that autograd's second graph takes over it
MANY_CALLS = 1e-4  # of a normalisation or attention, whose second derivative autograd composes of 20 to 30 calls
CONVOLUTION = 3e-11  # of an operation of a convolution's forward: eager computes the second derivative at a lower rate
GROUP = 2e-5  # of a grouped convolution, whose second derivative autograd takes group by group
SHARED = 3e-11  # of an operation of another product, where adjoints are cotangents: 2 units of 6 at 7e10 a second


def seconds_saved(linearization: Linearization) -> float:
    """The time that a step's closed form takes less than autograd; negative where it takes more.

    Args:
        linearization: the graph at its input.

    Returns:
        Seconds.
    """
    graph, saved, shared = linearization.graph, 0.0, adjoints_are_cotangents(linearization)
    for i, node in enumerate(graph.nodes):
        if not (node and node.inputs):
            continue
        rule = uncast(node.rule)
        if isinstance(rule, Opaque):
            saved -= OPAQUE
        elif not rule.aliases:
            saved += NUMBER * linearization.shapes[i].numel() - NODE
        if isinstance(rule, (AtOnce, Standardise, Attention)):
            saved += MANY_CALLS
        elif isinstance(rule, (Conv, ConvBlock)):
            groups = rule.groups if isinstance(rule, Conv) else 1
            saved += CONVOLUTION * linearization.flops(i) + GROUP * groups * (groups > 1)
        elif shared:
            saved += SHARED * linearization.flops(i)
    return saved
