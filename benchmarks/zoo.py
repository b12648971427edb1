"""Whole architectures, timm's, torchvision's and our re-creations: checked in float64, then timed with their peers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gradreg_fast
from gradreg_fast import ops, reference
from gradreg_fast.explain import explain
from gradreg_fast.signature import NONE, bind_call
from gradreg_fast.verify import evaluate

from . import architectures as ours
from .cases import Workload
from .peers import Autograd, GradregFast, InductorAutograd, Peer
from .speed import Plan, apart, timed

INSTALL = (
    "pip install --no-deps timm==1.0.31 torchvision==0.28.0 (without --no-deps pip would replace torch), and what "
    "timm needs: pip install huggingface_hub pyyaml safetensors"
)
SECONDS = 240  # for a process that checks an architecture, or times it with some peers: compiling included
CLASSES = 10


@contextmanager
def double_backward() -> Iterator[None]:
    """Within it PyTorch has a double backward: attention by plain products, hardsigmoid as a clamp and a division."""
    hardsigmoid = F.hardsigmoid
    F.hardsigmoid = lambda x, inplace=False: F.relu6(x + 3) / 6
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        F.hardsigmoid = hardsigmoid


class _Uncounted(Peer):
    def units(self) -> None:
        """Not in the table."""


class Eager(_Uncounted, Autograd):
    """Eager double backward, where there is one."""

    name = "eager"

    def step(self) -> tuple[Tensor, dict]:
        """Under `double_backward`."""
        with double_backward():
            return super().step()


class Functional(_Uncounted, GradregFast):
    """One call of `gradreg_fast.functional`."""

    name = "functional"


class Converted(_Uncounted, Autograd):
    """Eager's lines on the drop-in."""

    name = "convert"

    def __init__(self, *args):
        super().__init__(*args)
        self.model = gradreg_fast.convert(self.model)


class Inductor(InductorAutograd):
    """`torch.compile` of the eager step."""

    name = "inductor"

    def __init__(self, *args):
        super().__init__(*args)
        compiled = self.step

        def step():
            with double_backward():
                return compiled()

        self.step = step


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Functional, Converted, Inductor, Eager)}


@dataclass(frozen=True)
class Architecture(Workload):
    """A network as its users make it, with what it is trained on.

    Attributes:
        make: returns the network; the same one after the same seed.
        package: which has to be installed.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: int
    task: str = "cross_entropy"
    penalty: str = "double_backprop"
    outputs: int = CLASSES
    weight: float = 1.0
    package: str | None = None

    def build(self) -> nn.Module:
        """The network, in training mode.

        Its constant parameters get some noise: heads that begin at zero, and scales near it, would hide from every
        comparison what lies behind them.
        """
        torch.manual_seed(0)
        model = self.make().train()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.numel() > 1 and parameter.min() == parameter.max():
                    parameter += 0.1 * torch.randn_like(parameter)
        return model

    def model(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network without dropout: no two peers draw alike."""
        model = self.build()
        for module in model.modules():
            if isinstance(getattr(module, "p", None), float):
                module.p = 0.0
        return model.to(device, dtype)


def _timm(name, **settings):
    torchvision()
    return importlib.import_module("timm").create_model(name, num_classes=CLASSES, **settings)


def _torchvision(name, **settings):
    return getattr(torchvision(), name)(num_classes=CLASSES, **settings)


def torchvision() -> Any:
    """`torchvision.models`, also beside a torch that its compiled operators do not fit."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:  # it looks up two of them by name
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        torchvision.library = library  # lives as long as its operators are wanted
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return importlib.import_module("torchvision.models")


def missing(package: str | None) -> bool:
    """Whether a package is not installed."""
    return package is not None and importlib.util.find_spec(package) is None


def _recreated(name, kind, shape, rows, task, penalty, outputs=1):
    return Architecture(name, kind, shape, rows, task, penalty, outputs)


def _image(package, name, size=48, rows=4, **settings):
    make = partial({"timm": _timm, "torchvision": _torchvision}[package], name, **settings)
    return Architecture(name, make, (3, size, size), rows, package=package)


RECREATED = (
    _recreated("DCGAN discriminator", ours.DCGANDiscriminator, (3, 64, 64), 8, "real", "r1"),
    _recreated("WGAN-GP ResNet critic", ours.WGANGPCritic, (3, 32, 32), 8, "none", "gradient_penalty"),
    _recreated("SNGAN discriminator", ours.SNGANDiscriminator, (3, 32, 32), 8, "real", "r1"),
    _recreated("StyleGAN2 discriminator", ours.StyleGAN2Discriminator, (3, 32, 32), 8, "real", "r1"),
    _recreated("R3GAN discriminator", ours.R3GANDiscriminator, (3, 32, 32), 8, "relativistic", "r1_r2"),
    _recreated("NeuS distance network", ours.SignedDistance, (3,), 1024, "mse", "eikonal"),
    _recreated("SIREN", ours.Siren, (2,), 1024, "mse", "gradient_matching"),
    _recreated("SchNet", ours.SchNet, (9, 3), 16, "mse", "gradient_matching"),
    _recreated("transformer", ours.Transformer, (64, 96), 8, "cross_entropy", "double_backprop", CLASSES),
)
PACKAGED = (
    _image("timm", "resnet18"),
    _image("timm", "vgg11", mlp_ratio=1 / 16),
    _image("timm", "densenet121"),
    _image("timm", "efficientnet_b0"),
    _image("timm", "tf_mobilenetv3_small_minimal_100"),
    _image("timm", "mobilenetv2_100"),
    _image("timm", "mobilenetv3_small_100"),
    _image("timm", "ghostnet_100"),
    _image("timm", "regnetx_002"),
    _image("timm", "regnety_002"),
    _image("timm", "repvgg_a0"),
    _image("timm", "eca_nfnet_l0"),
    _image("timm", "convnext_atto"),
    _image("timm", "poolformer_s12"),
    _image("timm", "edgenext_xx_small"),
    _image("timm", "starnet_s1"),
    _image("timm", "mixer_s32_224", img_size=48),
    _image("timm", "resmlp_12_224", img_size=48),
    _image("timm", "vit_tiny_patch16_224", img_size=48),
    _image("timm", "deit_tiny_distilled_patch16_224", img_size=48),
    _image("timm", "cait_xxs24_224", img_size=48),
    _image("timm", "coat_lite_tiny", img_size=48),
    _image("timm", "pvt_v2_b0"),
    _image("timm", "swin_tiny_patch4_window7_224", img_size=48),
    _image("timm", "mobilevit_xxs"),
    _image("torchvision", "swin_t"),
    _image("torchvision", "squeezenet1_1"),
    _image("torchvision", "shufflenet_v2_x0_5"),
    _image("torchvision", "mnasnet0_5"),
    _image("torchvision", "googlenet", aux_logits=False, init_weights=False),
)
ARCHITECTURES = {each.name: each for each in (*RECREATED, *PACKAGED)}

QUICK = ("SIREN", "SchNet", "resnet18")


@dataclass(frozen=True)
class Job:
    """One architecture in a process of its own: timed with some peers; without any, its rules and parity checked."""

    architecture: Architecture
    peers: tuple[str, ...] = ()

    def do(self, plan: Plan, report: Callable[[str], Any]) -> dict | str:
        """What the table needs, by name, or each peer's `status` and figures; why there is nothing, in words.

        Args:
            plan: how long.
            report: is told what is going on, in a few words.
        """
        try:
            return apart(_time if self.peers else _check, self.architecture, self.peers, plan, report, SECONDS)
        except RuntimeError as error:
            if not self.peers:
                return str(error)
            return {name: {"status": "failed", "reason": str(error)} for name in self.peers if name != Eager.name}


def jobs(chosen: Sequence[Architecture], peers: Sequence[str], slow: Sequence[str]) -> tuple[list[Job], list[Job]]:
    """What there is to do: first without the peers that are slow to compile, then with these, each time with eager."""
    first, last = (tuple(name for name in peers if (name in slow) == late) for late in (False, True))
    first, last = (tuple(dict.fromkeys((*group, Eager.name))) if group else () for group in (first, last))
    checked = [Job(each, group) for each in chosen for group in ((), first)]
    return list(dict.fromkeys(checked)), [Job(each, last) for each in chosen if last]


def _time(architecture, peers, plan, say):
    return timed(architecture, {name: PEERS[name] for name in peers}, plan, say, Eager)


def _check(architecture, peers, plan, say):
    say("rules")
    model = architecture.build()
    x = architecture.batch().x
    rows = explain(model, x, architecture.penalty).rows
    reasons = [row.reason for row in rows if row.backend == "autograd"]
    say("parity in float64")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nodes": len(rows),
        "by_autograd": reasons,
        "eager_lacks": lacking(architecture),
        "left_to_autograd": left_to_autograd(model, x),
        "parity": {"train": parity(architecture, True), "eval": parity(architecture, False)},
    }


def lacking(architecture: Architecture) -> str:
    """What PyTorch's own double backward of the model fails for; nothing if it does not."""
    model, x = architecture.build(), architecture.batch().x
    try:
        evaluate(reference.value_and_vjp, model, bind_call(model, x, "x", None, NONE, {})[0], x, {})
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def left_to_autograd(model: nn.Module, x: Tensor) -> bool:
    """Whether the drop-in, once it knows what the model costs, leaves all of it to autograd."""
    drop_in = gradreg_fast.convert(model)
    for _ in range(2):
        y = drop_in(x.detach().requires_grad_())
    found, functions = False, [y.grad_fn]
    seen = set(functions)
    while functions and not found:
        function = functions.pop()
        found = getattr(function, "_forward_cls", object).__module__.startswith("gradreg_fast")
        following = {each for each, _ in function.next_functions if each is not None} - seen
        seen |= following
        functions += following
    return not found


def parity(architecture: Architecture, training: bool) -> dict[str, float]:
    """The worst relative error of the functional call and of `convert`, in float64: values, gradients, buffers."""
    model, x = architecture.build().double().train(training), architecture.batch(dtype=torch.float64).x

    def evaluated(function, model):
        return evaluate(function, model, bind_call(model, x, "x", None, NONE, {})[0], x, {})

    with double_backward():
        truth = evaluated(reference.value_and_vjp, model)
    drop_in = gradreg_fast.convert(model)
    with gradreg_fast.backend("torch"):  # where `convert` would leave the model to autograd there were nothing to check
        converted = worst(evaluated(reference.value_and_vjp, drop_in), truth)
    return {"functional": worst(evaluated(ops.value_and_vjp, model), truth), "convert": converted}


def worst(mine: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest error of any tensor, relative to its norm or to a thousandth of the largest norm of its kind."""
    norms = {name: tensor.double().norm() for name, tensor in truth.items()}
    largest = {name.split()[0]: torch.zeros(()) for name in norms}
    for name, norm in norms.items():
        largest[name.split()[0]] = torch.maximum(largest[name.split()[0]], norm)
    errors = [
        (mine[name].double() - tensor.double()).norm() / (norms[name] + 1e-3 * largest[name.split()[0]] + 1e-300)
        for name, tensor in truth.items()
    ]
    return torch.stack(errors).nan_to_num(nan=float("inf")).max().item()
