"""Training by Lightning and Accelerate, the real ones, gives the parameters of the plain loop."""

import copy
import logging
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradreg_fast import functional
from gradreg_fast.modules import WithPenalty

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif("config.getoption('device') != 'cpu'", reason="the trainers choose devices themselves"),
]

WEIGHT, STEPS = 0.3, 6


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def loader():
    generator = torch.Generator().manual_seed(1)
    x, classes = torch.randn(STEPS * 4, 5, generator=generator), torch.arange(STEPS * 4) % 3
    return DataLoader(TensorDataset(x, classes), batch_size=4)


def task(y, target):
    return nn.functional.cross_entropy(y, target)


def plain_loop(every=1, epochs=1):
    """The parameters after the steps, with the penalty by plain autograd."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step, (x, target) in enumerate(batch for _ in range(epochs) for batch in loader()):
        x.requires_grad_()
        y = model(x)
        loss = task(y, target)
        if step % every == 0:
            each = nn.functional.cross_entropy(y, target, reduction="sum")
            (g,) = torch.autograd.grad(each, x, create_graph=True)
            loss = loss + WEIGHT * every * g.square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*model.parameters()]


def assert_same(mine, others):
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.fixture
def lightning():
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return pytest.importorskip("lightning.pytorch")


def module_of(lightning, step, automatic=True):
    """A LightningModule with this training step."""

    class Module(lightning.LightningModule):
        training_step = step

        def __init__(self):
            super().__init__()
            self.automatic_optimization = automatic
            self.network = network()
            self.penalised = WithPenalty(self.network, "double_backprop")

        def forward(self, x):
            return self.network(x)

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), 0.1)

    return Module()


def fit(lightning, module, callbacks=(), epochs=1, checkpoint=None):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    trainer.fit(module, loader(), ckpt_path=checkpoint)
    return trainer


def shared_forward(self, batch, index):
    x, target = batch
    y, penalty = self.penalised(x, target)
    return task(y, target) + WEIGHT * penalty


def manual(self, batch, index):
    optimizer = self.optimizers()
    optimizer.zero_grad()
    self.manual_backward(shared_forward(self, batch, index))
    optimizer.step()


@pytest.mark.parametrize("step", [shared_forward, manual])
def test_with_penalty_in_a_lightning_module(lightning, step):
    module = module_of(lightning, step, automatic=step is shared_forward)
    fit(lightning, module)
    assert_same(module.network.parameters(), plain_loop())


def unpenalised(self, batch, index):
    return task(self(batch[0]), batch[1])


def in_a_dictionary(self, batch, index):
    return {"loss": unpenalised(self, batch, index), "index": index}


def whole_batch(batch):
    return batch


@pytest.mark.parametrize("name", ["network", ""])
@pytest.mark.parametrize("step", [unpenalised, in_a_dictionary])
def test_callback(lightning, step, name):
    from gradreg_fast.lightning import PenaltyCallback

    module = module_of(lightning, step)
    halves = [PenaltyCallback("double_backprop", WEIGHT / 2, name, whole_batch, name=f"half {i}") for i in range(2)]
    trainer = fit(lightning, module, halves)
    assert_same(module.network.parameters(), plain_loop())
    assert trainer.callback_metrics["half 1"].shape == ()
    assert "training_step" not in vars(module)


def test_callback_continues_its_schedule(lightning, tmp_path):
    from gradreg_fast.lightning import PenaltyCallback

    def callback():
        return PenaltyCallback("double_backprop", WEIGHT, "network", whole_batch, every=4)

    module = module_of(lightning, unpenalised)
    trainer = fit(lightning, module, [callback()])
    trainer.save_checkpoint(tmp_path / "first epoch")
    resumed = module_of(lightning, unpenalised)
    fit(lightning, resumed, [callback()], epochs=2, checkpoint=tmp_path / "first epoch")
    assert_same(resumed.network.parameters(), plain_loop(every=4, epochs=2))


def test_callback_on_a_part_of_the_batch(lightning):
    from gradreg_fast.lightning import PenaltyCallback

    sizes = []

    def spy(model, x, target):
        sizes.append((len(x), len(target)))
        return functional.double_backprop(model, x, target)

    fit(lightning, module_of(lightning, unpenalised), [PenaltyCallback(spy, 1.0, "network", whole_batch, fraction=0.5)])
    assert sizes == [(2, 2)] * STEPS


def test_callback_refuses_manual_optimisation(lightning):
    from gradreg_fast.lightning import PenaltyCallback

    with pytest.raises(ValueError, match="WithPenalty"):
        fit(lightning, module_of(lightning, manual, automatic=False), [PenaltyCallback("r1", 1.0)])


def test_accelerate(tmp_path):
    """Gradients accumulated over two batches, and a checkpoint in the middle of the schedule."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)

    def train(model, optimizer, batches):
        for x, target in batches:
            with accelerator.accumulate(model):
                y, penalty = model(x, target)
                accelerator.backward(task(y, target) + WEIGHT * penalty)
                optimizer.step()
                optimizer.zero_grad()

    def prepared():
        model = WithPenalty(network(), "double_backprop", every=4)
        return accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))

    batches = [*loader()]
    model, optimizer = prepared()
    train(model, optimizer, batches[:2])
    accelerator.save_state(tmp_path)
    train(model, optimizer, batches[2:])
    expected = copy.deepcopy([*model.parameters()])
    accelerator.load_state(tmp_path)
    train(model, optimizer, batches[2:])
    assert_same(model.parameters(), expected)

    plain = network()
    other = torch.optim.SGD(plain.parameters(), 0.1)
    for i, (x, target) in enumerate(batches):
        y, penalty = functional.double_backprop(plain, x, target)
        ((task(y, target) + WEIGHT * penalty * (4 if i % 4 == 0 else 0)) / 2).backward()
        if i % 2:
            other.step()
            other.zero_grad()
    assert_same(expected, plain.parameters())
