"""Benchmarks of gradreg_fast, run from the checkout: `python -m benchmarks train | speed | overhead | plot`.

`cases` says what is measured, `peers` by whom, `speed` and `memory` how, `report` and `plot` show it; `overhead` takes
a tiny step apart; `train` is the main job: the same network trained with each engine. Results that the README quotes
are in `results/`.
"""


class BadArgument(ValueError):
    """A command-line argument that cannot be honoured; the message names it and says what it must be."""
