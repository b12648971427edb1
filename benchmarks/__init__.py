"""Benchmarks of gradreg_fast, run from the checkout: `python -m benchmarks train | speed | overhead | experiment`.

`cases` says what is measured, `peers` by whom, `speed` and `memory` how, `report` and `plot` show it; `overhead` takes
a tiny step apart; `train` is the main job: the same network trained with each engine; `experiments` ask whether the
penalties help. Results that the README quotes are in `results/`.
"""


class BadArgument(ValueError):
    """A command-line argument that cannot be honoured; the message names it and says what it must be."""
