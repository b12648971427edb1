"""A penalty for any LightningModule. Imports Lightning; nothing else of the package does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import update_wrapper

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gradreg_fast import budget, functional


class PenaltyCallback(Callback):
    """Adds ``weight * penalty`` to the loss that a LightningModule's `training_step` returns.

    The penalty is part of the training step, so that strategies (DDP) and precision see one ordinary step. It has a
    forward pass of its own: a training step that calls `gradreg_fast.modules.WithPenalty` shares it, and is also the
    way for manual optimisation. The penalty's value is logged where it is computed, before weighting.

    Args:
        penalty: a function of `gradreg_fast.functional`, or its name.
        weight: of the penalty in the loss.
        network: name of the submodule that is penalised; by default the LightningModule itself, by its forward.
        arguments: makes the penalty's arguments behind the network from a batch; by default the batch's first member.
        every: compute it at one training step of that many, multiplied by them; checkpoints hold the place.
        fraction: compute it on that part of the batch, drawn at random (see `gradreg_fast.budget`).
        name: in the logs.
        **settings: further keyword arguments of the penalty.

    Raises:
        ValueError: if there is no penalty of that name, `every` or `fraction` is out of its range, or the module
            optimises manually.

    >>> from lightning.pytorch import Trainer
    >>> double_backprop = PenaltyCallback("double_backprop", 0.1, "network", lambda batch: batch, every=4)
    >>> trainer = Trainer(callbacks=[double_backprop], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        penalty: Callable | str,
        weight: float,
        network: str = "",
        arguments: Callable[[object], tuple] = lambda batch: (batch[0],),
        *,
        every: int = 1,
        fraction: float = 1.0,
        name: str = "penalty",
        **settings,
    ) -> None:
        budget.check_fraction(fraction)
        self.penalty = functional.named(penalty)
        self.weight = weight
        self.network = network
        self.arguments = arguments
        self.schedule = budget.Lazy(every)
        self.fraction = fraction
        self.name = name
        self.settings = settings

    @property
    def state_key(self) -> str:
        """Names the callback's state in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict:
        """The place in the schedule."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue there."""
        self.schedule.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Become a part of the training step."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                "pl_module must optimise automatically; in a manual training_step call "
                "gradreg_fast.modules.WithPenalty(network, penalty) and add its penalty to the loss"
            )
        if not isinstance(pl_module.training_step, _PenalisedStep):
            pl_module.training_step = _PenalisedStep(pl_module)
        pl_module.training_step.callbacks.append(self)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the training step as it was."""
        step = pl_module.training_step
        if stage == "fit" and isinstance(step, _PenalisedStep):
            step.callbacks.remove(self)
            if not step.callbacks:
                del pl_module.training_step

    def loss(self, module: LightningModule, batch: object) -> Tensor | float:
        """What is added to the loss of this step."""
        if not self.schedule.due():
            return 0.0
        network, (x, *others) = module.get_submodule(self.network), self.arguments(batch)
        if self.fraction == 1:
            _, value = self.penalty(network, x, *others, **self.settings)
        else:
            chosen, _ = budget.draw(self.fraction, x)
            _, value = budget.on_rows(self.penalty, chosen, network, x, *others, **self.settings)
        module.log(self.name, value.detach())
        return self.weight * self.schedule.every * value


class _PenalisedStep:
    """In the place of a LightningModule's training step: the same, and the penalties of the callbacks."""

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.plain = module.training_step
        self.callbacks: list[PenaltyCallback] = []
        update_wrapper(self, self.plain)  # Lightning reads the signature

    def __call__(self, batch: object, *args, **kwargs) -> Tensor | Mapping | None:
        result = self.plain(batch, *args, **kwargs)
        if result is None:  # Lightning's sign to skip the step
            return None
        added = sum(callback.loss(self.module, batch) for callback in self.callbacks)
        if isinstance(result, Mapping):
            return {**result, "loss": result["loss"] + added}
        return result + added
