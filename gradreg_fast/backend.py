"""Which implementation runs: compiled kernels or PyTorch lines, chosen in this one place.

``auto`` uses kernels where they are faster and exist, and PyTorch lines elsewhere, silently. ``cpp`` uses kernels for
tensors on the CPU wherever one exists, fast or not, and raises if there is no compiled library; ``cuda`` does the same
for tensors on CUDA devices. ``torch`` uses PyTorch lines only.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from functools import cache
from types import ModuleType, TracebackType

import torch
from torch import Tensor

from gradreg_fast import build

NAMES = ("auto", "torch", "cpp", "cuda")
KERNELS = {"cpu": "cpp", "cuda": "cuda"}
"""The backend whose kernels are for tensors on a type of device."""

LEAST_CAPABILITY = (8, 0)
"""Of GPUs that the CUDA kernels run on."""

WIDEST_TOGETHER = {torch.float32: 128, torch.float64: 64, torch.float16: 128, torch.bfloat16: 128}
"""The widest layer of fully connected networks that CUDA kernels carry tiles of rows through, by dtype: sure to fit
into shared memory (csrc/cuda/mlp.h). Wider ones take a product a layer and sweep (csrc/cuda/layerwise.h)."""

_loading = threading.Lock()
_found: tuple[ModuleType | None, str, str] | None = None  # by `_library`; None: not yet looked for
_chosen: str | None = None  # by `backend`; None: by the environment


class backend:
    """Choose the implementation: ``backend("torch")``, or for a while: ``with backend("torch"): ...``.

    The choice holds for the whole process and takes precedence over the environment's ``GRADREG_FAST_BACKEND``.

    Args:
        name: ``"auto"``, ``"torch"``, ``"cpp"`` or ``"cuda"``.

    Raises:
        ValueError: if there is no such backend.
        RuntimeError: if it is ``"cpp"`` or ``"cuda"`` and its kernels cannot be used, with the reason.

    >>> with backend("torch"):
    ...     current()
    'torch'
    """

    def __init__(self, name: str) -> None:
        global _chosen
        check_name(name, "backend")
        if name in KERNELS.values():
            require(name)
        self._before, _chosen = _chosen, name

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._before


def check_name(name: str, source: str) -> None:
    """Raise unless this is a backend."""
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")


def current() -> str:
    """The choice in force."""
    if _chosen is not None:
        return _chosen
    name = os.environ.get("GRADREG_FAST_BACKEND") or "auto"
    check_name(name, "GRADREG_FAST_BACKEND")
    return name


def available(device: torch.device) -> bool:
    """Whether compiled kernels serve tensors there now; builds them at the first question.

    Raises:
        RuntimeError: if kernels were asked for in vain, with the reason.
    """
    name = current()
    if name in KERNELS.values():
        require(name)
        return insists(device)
    own = KERNELS.get(device.type)
    return name == "auto" and own is not None and usable(own)[0] is not None


def insists(device: torch.device) -> bool:
    """Whether kernels were asked for wherever one exists for tensors there, fast or not."""
    return current() == KERNELS.get(device.type)


def require(name: str = "cpp") -> ModuleType:
    """The compiled library, with kernels for this backend that run here.

    Raises:
        RuntimeError: if there is none, with the reason.
    """
    module, reason = usable(name)
    if module is None:
        raise RuntimeError(f"backend {name!r} cannot be used: {reason}")
    return module


def usable(name: str) -> tuple[ModuleType | None, str]:
    """The compiled library if the kernels of backend ``"cpp"`` or ``"cuda"`` run here, or None and why not."""
    return library() if name == "cpp" else cuda_library()


def library() -> tuple[ModuleType | None, str]:
    """The compiled library, or None and why there is none; looked for once, by one thread."""
    return _library()[:2]


@cache
def cuda_library() -> tuple[ModuleType | None, str]:
    """The compiled library if it has CUDA kernels that run here, or None and why not.

    Apart from `library`, since asking this initialises CUDA, after which a process cannot be forked.
    """
    module, *reasons = _library()
    reason = "".join(reasons) or cuda_problem(module)
    return None if reason else module, reason


def _library() -> tuple[ModuleType | None, str, str]:
    """The compiled library, why there is none, and why there are no CUDA kernels."""
    global _found
    if _found is None:  # no lock at every step: a process that forks in one would be left with it
        with _loading:
            _found = _found or _look()
    return _found


def _look() -> tuple[ModuleType | None, str, str]:
    try:
        module, without_cuda = build.load()
    except build.BuildError as error:
        return None, str(error), ""
    register_fakes(module)
    return module, "", without_cuda


def cuda_problem(module: ModuleType) -> str:
    """Why CUDA kernels cannot run here; empty if they can."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if min(capabilities) < LEAST_CAPABILITY:
        needed, lowest = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, min(capabilities)))
        return f"they need compute capability {needed}, a device here has {lowest}"
    return module.cuda_problem()


def mlp_kept_on_cuda(x: Tensor, weights: Sequence[Tensor], kinds: Sequence[int], stack: int) -> int:
    """How many numbers ``mlp_forward_pull`` keeps on a CUDA device: as csrc/cuda/mlp.h and layerwise.h place them."""
    rows, size = x.shape[0], x.element_size()
    if max(max(weight.shape) for weight in weights) <= WIDEST_TOGETHER[x.dtype]:
        return rows * (1 + stack) * sum(len(weight) for weight in weights)
    bytes = 0
    for i, (weight, kind) in enumerate(zip(weights, kinds, strict=True)):
        one = rows * len(weight) * size
        values = kind not in (0, 1, 4, 5) and i < len(weights) - 1  # else states are h
        above = kind in (6, 7, 8, 9)  # whose slope vanishes where they bend
        bytes += (1 + values) * _round_up(one) + (1 + above) * _round_up(stack * one)
    return bytes // size


def _round_up(bytes: int) -> int:
    return (bytes + 255) // 256 * 256


def register_fakes(module: ModuleType) -> None:
    """Tell PyTorch's tracers the shapes that the operations return."""
    ops = torch.library

    @ops.register_fake("gradreg_fast::mlp_forward_pull")
    def forward_pull(x, cotangent, target, offset, weights, biases, kinds, settings, loss, stack, unit_seed, keep):
        y, g = x.new_empty(x.shape[0], len(weights[-1])), x.new_empty(stack, *x.shape)
        if x.device.type == "cuda":
            count = mlp_kept_on_cuda(x, weights, kinds, stack) if keep else 0
            norms = torch.promote_types(x.dtype, torch.float32)
            return y, g, x.new_empty(x.shape[0], dtype=norms), x.new_empty(count)
        B, widths = x.shape[0], [x.shape[1], *map(len, weights)]
        none, one = (module.mlp_kept_size(widths, x.element_size(), rows, stack, keep) for rows in (0, 1))
        count = none + B * (one - none)  # B may be symbolic
        return y, g, x.new_empty(B), x.new_empty(count)

    @ops.register_fake("gradreg_fast::mlp_push_adjoint")
    def push_adjoint(
        x,
        cotangent,
        target,
        kept,
        weights,
        kinds,
        settings,
        loss,
        stack,
        unit_seed,
        ybar,
        gbar,
        norm_weights,
        wanted,
    ):
        shapes = [x.shape, (stack, x.shape[0], len(weights[-1]))]
        for weight in weights:
            shapes += [weight.shape, weight.shape[:1]]
        return [x.new_empty(shape) for shape, flag in zip(shapes, wanted, strict=True) if flag]

    def block_sizes(like, batch, weight, options):
        """Shape of a block's y, and how many slopes and numbers in all it keeps."""
        (B, _, *image), (outputs, _, *kernel), pooling = batch, weight.shape, options[6]
        stride, padding, dilation, window, step, margin = (options[i : i + 2] for i in (0, 2, 4, 7, 9, 11))
        z, y = [outputs], [B, outputs]
        for i in range(2):
            z.append((image[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1)
            y.append((z[-1] + 2 * margin[i] - window[i]) // step[i] + 1 if pooling else z[-1])
        maxima = pooling in (1, 2)
        lanes = module.lanes(like.element_size())
        slopes = math.prod(y[1:] if maxima else z) if options[13] else 0
        winners = math.prod(y[1:]) if maxima else 0
        tiles = -(-B // lanes) * lanes
        return y, tiles * slopes, tiles * (slopes * (2 if options[13] > 2 else 1) + winners)

    def images(like, shape, options):
        """Images [.., C, H, W] in the layout of the results."""
        return laid_out(like, shape, options[14])

    def laid_out(like, shape, channels_last, **dtype):
        if not channels_last:
            return like.new_empty(shape, **dtype)
        *before, C, H, W = shape
        return like.new_empty((*before, H, W, C), **dtype).movedim(-1, -3)

    @ops.register_fake("gradreg_fast::conv_forward")
    def conv_forward(x, weight, bias, options, settings):
        y, _, kept = block_sizes(x, x.shape, weight, options)
        return images(x, y, options), x.new_empty(kept)

    @ops.register_fake("gradreg_fast::conv_push")
    def conv_push(xdot, u, kept, weight, options, settings, push, curvature, gradient):
        y, slopes, _ = block_sizes(xdot, xdot.shape[1:], weight, options)
        results = [images(xdot, (len(xdot), *y), options)] if push else []
        results += [xdot.new_empty(slopes)] if curvature else []
        return results + ([xdot.new_empty(weight.shape)] if gradient else [])

    @ops.register_fake("gradreg_fast::conv_pull")
    def conv_pull(u, second, x, kept, weight, shape, options, settings, pull, bias):
        stack = 1 if u is None else len(u)
        results = [images(weight, (stack, *shape), options)] if pull else []
        results += [weight.new_empty(weight.shape)] if x is not None else []
        return results + ([weight.new_empty(weight.shape[:1])] if bias else [])

    def summed(like, weight, options, *before):
        """New images [*before, outputs, h, w] from images [.., H, W]."""
        stride, padding, dilation = (options[i : i + 2] for i in (0, 2, 4))
        sizes = zip(like.shape[-2:], padding, dilation, weight.shape[2:], stride, strict=True)
        z = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in sizes]
        return images(like, (*before, len(weight), *z), options)

    @ops.register_fake("gradreg_fast::image_forward")
    def image_forward(x, weight, bias, options, settings):
        y = summed(x, weight, options, len(x))
        apart = options[13] not in ((0, 1, 4, 5) if settings[0] < 0 else (0, 1, 2, 4, 5))
        return y, torch.empty_like(y) if apart else x.new_empty(0)

    @ops.register_fake("gradreg_fast::image_push")
    def image_push(xdot, u, state, weight, options, settings, push):
        ydot = summed(xdot, weight, options, *xdot.shape[:2])
        wide = torch.promote_types(xdot.dtype, torch.float32)
        second = [] if u is None else [xdot.new_empty(math.prod(ydot.shape[1:]), dtype=wide)]
        return ([ydot] if push else []) + second

    @ops.register_fake("gradreg_fast::image_pull")
    def image_pull(u, weight, state, second, size, options, settings, above):
        return [images(u, (*u.shape[:2], weight.shape[1], *size), options) for _ in range(1 + above)]

    @ops.register_fake("gradreg_fast::image_slope")
    def image_slope(v, state, second, kind, settings):
        B, C, H, W = state.shape
        return state.new_empty(1 if v is None else len(v), B, H, W, C).movedim(-1, -3)

    @ops.register_fake("gradreg_fast::image_gradient")
    def image_gradient(u, x, weight, options, settings):
        return x.new_empty(weight.shape)

    @ops.register_fake("gradreg_fast::active_sqnorm")
    def active_sqnorm(hidden, weights, gram, keep):
        lanes = module.lanes(weights[0].element_size())
        B, K = hidden[0].shape[0], len(weights[-1])
        widths = [weight.shape[1] for weight in weights] if keep else []
        return hidden[0].new_empty(B), [hidden[0].new_empty(B, K, -(-n // lanes) * lanes) for n in widths]

    @ops.register_fake("gradreg_fast::active_sqnorm_gradients")
    def active_sqnorm_gradients(hidden, weights, gram, cotangents, factor, wanted):
        return [weight.new_empty(weight.shape) for weight, flag in zip(weights, wanted, strict=True) if flag]

    @ops.register_fake("gradreg_fast::activate")
    def activate(z, kind, settings, masked):
        return torch.empty_like(z), z.new_empty(-(-z.numel() * z.element_size() // 16) * masked, dtype=torch.uint8)

    @ops.register_fake("gradreg_fast::activate_")
    def activate_in_place(z, kind, settings, masked):
        return activate(z, kind, settings, masked)[1]

    @ops.register_fake("gradreg_fast::activation_slope")
    def activation_slope(kept, v, kind, settings):
        return torch.empty_like(v)

    @ops.register_fake("gradreg_fast::activation_slope_")
    def activation_slope_in_place(kept, v, kind, settings):
        return None

    @ops.register_fake("gradreg_fast::activation_meet")
    def activation_meet(kept, u, xdot, kind, settings, push):
        return [torch.empty_like(u[0]), *([torch.empty_like(xdot)] if push else ())]

    @ops.register_fake("gradreg_fast::activation_bend")
    def activation_bend(kept, d, w, kind, settings, below):
        return torch.empty_like(w)

    def pooled(like, shape, options, **dtype):
        """What windows make, with all but the last two sizes given."""
        return laid_out(like, (*shape, *options[8:10]), options[10], **dtype)

    def unpooled(like, shape, options):
        """What windows slide over."""
        return laid_out(like, (*shape, *options[6:8]), options[10])

    @ops.register_fake("gradreg_fast::max_pool")
    def max_pool(z, options, kind, settings):
        return pooled(z, z.shape[:-2], options), pooled(z, z.shape[:-2], options, dtype=torch.uint8)

    @ops.register_fake("gradreg_fast::max_pool_push")
    def max_pool_push(code, xdot, options, kind, settings):
        return pooled(xdot, xdot.shape[:-2], options)

    @ops.register_fake("gradreg_fast::max_pool_pull")
    def max_pool_pull(code, u, options, kind, settings):
        return unpooled(u, u.shape[:-2], options)

    @ops.register_fake("gradreg_fast::average_pool")
    def average_pool(z, options, kind, settings):
        y = pooled(z, z.shape[:-2], options)
        bytes_of_window = -(-options[0] * options[1] // 8)
        return y, z.new_empty(y.numel() * bytes_of_window * (kind in (1, 2)), dtype=torch.uint8)

    @ops.register_fake("gradreg_fast::average_pool_push")
    def average_pool_push(kept, xdot, options, kind, settings):
        return pooled(xdot, xdot.shape[:-2], options)

    @ops.register_fake("gradreg_fast::average_pool_pull")
    def average_pool_pull(kept, u, second, options, kind, settings):
        return unpooled(u, u.shape[:-2], options)

    @ops.register_fake("gradreg_fast::average_pool_meet")
    def average_pool_meet(u, xdot, options, kind, settings):
        return unpooled(xdot, xdot.shape[1:-2], options)

    @ops.register_fake("gradreg_fast::norm_project")
    def norm_project(v, x, mean, inverse, weight, second, push, gradients):
        return [torch.empty_like(v), *([inverse.new_empty(2, x.shape[1])] if gradients else ())]

    @ops.register_fake("gradreg_fast::norm_meet")
    def norm_meet(u, v, x, mean, inverse, weight, push):
        gradient = inverse.new_empty(x.shape[1])
        return [torch.empty_like(x), gradient, *([torch.empty_like(v)] if push else ())]

    @ops.register_fake("gradreg_fast::layer_norm_project")
    def layer_norm_project(v, x, mean, inverse, weight, second, push, gradients):
        columns = x.numel() // inverse.numel()
        return [torch.empty_like(v), *([inverse.new_empty(2, columns)] if gradients else ())]

    @ops.register_fake("gradreg_fast::layer_norm_meet")
    def layer_norm_meet(u, v, x, mean, inverse, weight, push):
        gradient = inverse.new_empty(0 if weight is None else weight.numel())
        return [torch.empty_like(x), gradient, *([torch.empty_like(v)] if push else ())]

    @ops.register_fake("gradreg_fast::dot_samples")
    def dot_samples(a, b):
        return a.new_empty(a.shape[1], dtype=torch.promote_types(a.dtype, torch.float32))

    @ops.register_fake("gradreg_fast::scale_samples")
    def scale_samples(a, b, factor):
        return torch.empty_like(a)

    @ops.register_fake("gradreg_fast::activation")
    def activation(z: Tensor, kind, settings):
        return z.new_empty(z.shape), z.new_empty(z.shape), z.new_empty(z.shape)
