"""What is claimed, by our reading of the abstracts; and how the findings are told, with their uncertainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

VARGA = "Varga, Csiszárik, Zombori: Gradient regularization improves accuracy (arXiv:1712.09936)"
MCDONAGH = "McDonagh, Chen: intrinsic gradient information (arXiv:2112.00094)"
ELSEWHERE = "Where else penalties on input gradients are used"

CLAIMS: dict[str, tuple[str, str]] = {  # key: where it is made, and what it says
    "small data": (VARGA, "Gradient regularisation improves accuracy, most of all with little training data."),
    "controlled": (VARGA, "A penalty at the training points controls the gradient away from them as well."),
    "robustness": (VARGA, "(Not claimed in the abstract.) The same networks are more robust to noise and to attacks."),
    "surrogates": (MCDONAGH, "Gradient information, known or taken from a surrogate network, improves training."),
    "gan": (MCDONAGH, "Gradient information improves generative adversarial networks."),
    "complexity": (MCDONAGH, "The errors with and without gradient information bound the number of hidden nodes."),
    "linear": (MCDONAGH, "Linear regression gains from gradient information as a regulariser."),
    "forces": (ELSEWHERE, "Energies learned with their forces: both become more accurate."),
    "distance": (ELSEWHERE, "Signed distances learned with the eikonal equation are closer to true distances."),
    "critics": (ELSEWHERE, "Critics of images with gradient penalties: what a step costs, what the generator draws."),
}

SUPPORTS, AGAINST, UNDECIDED, MIXED, NOTED = "supports it", "does not support it", "undecided", "mixed", "noted"


class Finding(NamedTuple):
    """One sentence with its numbers, and what it means for the claim."""

    text: str
    verdict: str


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the 95% confidence interval of the mean (Student's t)."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return -math.inf, mean, math.inf
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean, mean + half


def geometric(values: Sequence[float]) -> tuple[float, float, float]:
    """The same of the geometric mean: for errors, which are positive and differ by factors."""
    return tuple(map(math.exp, interval([math.log(value) for value in values])))


def ratio(values: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """The same of the paired ratios."""
    return geometric([a / b for a, b in zip(values, base, strict=True)])


def said(ends: tuple[float, float, float], form: str = ".2f") -> str:
    """An interval in words: `mean (low to high)`; of one value there is none."""
    low, mean, high = (format(end, form) for end in ends)
    return f"{mean} ({low} to {high})" if math.isfinite(ends[2]) else mean


def verdict(ends: tuple[float, float, float], neutral: float = 1.0, less_is_better: bool = True) -> str:
    """Whether a whole interval lies on the better side of what no effect would give."""
    low, _, high = ends
    if low <= neutral <= high:
        return UNDECIDED
    return SUPPORTS if (high < neutral) == less_is_better else AGAINST


def overall(verdicts: Iterable[str]) -> str:
    """What several verdicts come to: the one that they share, or mixed."""
    different = set(verdicts)
    return different.pop() if len(different) == 1 else MIXED
