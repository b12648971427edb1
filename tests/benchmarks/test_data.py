"""Data sets load as documented, and what is wrong with a file is said."""

import gzip

import numpy as np
import pytest

from benchmarks import BadArgument, data


def test_digits_are_standardised_and_split():
    digits = data.load("digits")
    assert digits.x.shape[1:] == (1, 8, 8)
    assert len(digits.x) + len(digits.x_test) == 1797
    assert len(digits.x) == len(digits.y)
    assert digits.classes == 10
    assert abs(digits.x.mean()) < 1e-4
    assert abs(digits.x.std() - 1) < 1e-3


def test_train_size_keeps_the_test_part():
    whole, part = data.load("digits"), data.load("digits", 100)
    assert len(part.x) == 100
    assert (part.y_test == whole.y_test).all()


@pytest.mark.parametrize("size", [0, 5000])
def test_train_size_out_of_range(size):
    with pytest.raises(BadArgument, match="--train-size must be between 1 and"):
        data.load("digits", size)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, monkeypatch, packed):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        for kind, content in (
            ("images-idx3", bytes(16) + images.tobytes()),
            ("labels-idx1", bytes(8) + bytes([4, 0, 9])),
        ):
            path = tmp_path / f"{part}-{kind}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setattr(data, "MNIST", tmp_path)
    loaded = data.load("mnist-full")
    assert loaded.x.shape == loaded.x_test.shape == (3, 1, 28, 28)
    assert loaded.y.tolist() == [4, 0, 9]
    np.testing.assert_allclose(loaded.x[:, 0], (images - images.mean()) / images.std(), atol=1e-6)


def test_npz_with_and_without_a_test_part(tmp_path):
    x, y = np.random.rand(10, 6), np.arange(10) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=x.reshape(10, 2, 3), y=y, x_test=x.reshape(10, 2, 3)[:4], y_test=y[:4])
    assert len(data.load(str(tmp_path / "a.npz")).x_test) == 2
    assert data.load(str(tmp_path / "b.npz")).x_test.shape == (4, 1, 2, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, "must hold arrays x and y"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, "y must be classes"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, "the same length"),
        ({"x": np.full((4, 2), np.nan), "y": np.zeros(4, int)}, "x must be finite"),
        ({"x": np.zeros(4), "y": np.zeros(4, int)}, "x must be finite numbers"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4, int), "x_test": np.zeros((1, 2))}, "or neither"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4, int), "x_test": np.zeros((1, 3)), "y_test": [0]}, "the same shape"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadArgument, match=message):
        data.load(str(tmp_path / "a.npz"))


def test_unknown_names():
    with pytest.raises(BadArgument, match="--data must be one of digits"):
        data.load("cifar")
    with pytest.raises(BadArgument, match="there is no file"):
        data.load("missing.npz")
