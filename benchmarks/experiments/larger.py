"""Does a larger convolutional network, trained with more images, still gain from penalties on input gradients?

A ResNet with batch normalisation (8, 16 and 32 channels, a block each) on Fashion-MNIST, by the protocol of
`small_data`: 10,000 images, a fifth held out. 400 steps of 32 images are less than two passes over the rest, so that
this is the beginning of a training, and no answer for its end. The exact Jacobians are left out, for time: they cost ten
gradients a step. SGD (momentum 0.9, rate 0.03, cosine decay); intervals are over three seeds.
"""

from __future__ import annotations

from .classifiers import (
    NEEDS,
)

__all__ = ["CLAIM", "NEEDS", "cells", "draw", "findings", "run"]

CLAIM = "small data"
