"""Counting the operations of matrix products and convolutions, with the in-place one that PyTorch's counter omits."""

import torch
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def _in_place_product(total, a, b, *arguments, **keywords):
    return 2 * a[0] * a[1] * b[1]


MISSING = {aten.addmm_: _in_place_product}


def count(function):
    """Operations that a function takes, its backward passes included if it calls them."""
    with FlopCounterMode(display=False, custom_mapping=MISSING) as counter:
        function()
    return counter.get_total_flops()


def forward_flops(model, x):
    """One forward's product for each layer with a weight, in order."""
    flops, hooks = [], []

    def measure(layer, inputs, output):
        flops.append(count(lambda: type(layer).forward(layer, *inputs)))

    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            hooks.append(module.register_forward_hook(measure))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return flops
