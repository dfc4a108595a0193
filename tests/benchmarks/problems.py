"""What is fitted: networks with their data, as a torch module and as the Pyro program that says the same.

Everything is float32 and random; a curvature costs the same whatever the weights are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NOISE, PRIOR_STD = 0.5, 1.0


def mlp_small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 10))


def mlp_large() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 28), nn.ReLU(), nn.Linear(28, 10),
    )  # fmt: skip


def coloured() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 8 * 8, 21), nn.ReLU(), nn.Linear(21, 10),
    )  # fmt: skip


def many_classes() -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 1000))


def regression() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        net: makes the network.
        input_shape: of one datum.
        batch: data in a batch, for every contender alike.
        structure: of the precision.
        subset: "all" or "last_layer".
        loader: whether the batches come from a `DataLoader`, which puts them together datum by datum.
    """

    net: Callable[[], nn.Sequential]
    input_shape: tuple[int, ...]
    batch: int
    structure: str
    subset: str = "all"
    loader: bool = False

    @property
    def classification(self) -> bool:
        return self.net is not regression


ROWS = {
    "mlp 20-50-10, full": Row(mlp_small, (20,), 1000, "full"),
    "mlp 20-50-10, kron": Row(mlp_small, (20,), 1000, "kron"),
    "mlp 20-50-10, diag": Row(mlp_small, (20,), 1000, "diag"),
    "mlp 20-50-10, last layer full": Row(mlp_small, (20,), 1000, "full", "last_layer"),
    "mlp 784-256-64-10, kron": Row(mlp_large, (784,), 1000, "kron"),
    "mlp 784-256-64-10, diag": Row(mlp_large, (784,), 1000, "diag"),
    "mlp 784-256-64-10, last layer full": Row(mlp_large, (784,), 1000, "full", "last_layer"),
    "conv net 57k, kron": Row(convolutional, (1, 28, 28), 250, "kron"),
    "conv net 57k, diag": Row(convolutional, (1, 28, 28), 250, "diag"),
    "conv net 57k, last layer kron": Row(convolutional, (1, 28, 28), 250, "kron", "last_layer"),
    "last layer 512 x 1000, kron": Row(many_classes, (256,), 100, "kron", "last_layer"),
    "last layer 512 x 1000, diag": Row(many_classes, (256,), 100, "diag", "last_layer"),
    "loader, 20-50-10, full": Row(mlp_small, (20,), 256, "full", loader=True),
    "loader, 20-50-10, kron": Row(mlp_small, (20,), 256, "kron", loader=True),
    "loader, 20-50-10, diag": Row(mlp_small, (20,), 256, "diag", loader=True),
    "loader, 20-50-10, last layer full": Row(mlp_small, (20,), 256, "full", "last_layer", loader=True),
    "loader, 784-256-64-10, kron": Row(mlp_large, (784,), 256, "kron", loader=True),
    "loader, 784-256-64-10, diag": Row(mlp_large, (784,), 256, "diag", loader=True),
    "loader, 784-256-64-10, last layer full": Row(mlp_large, (784,), 256, "full", "last_layer", loader=True),
    "loader, conv net 3x32x32, kron": Row(coloured, (3, 32, 32), 256, "kron", loader=True),
    "loader, conv net 3x32x32, diag": Row(coloured, (3, 32, 32), 256, "diag", loader=True),
    "regression 8-50-50-1, full": Row(regression, (8,), 1000, "full"),
    "regression 8-50-50-1, kron": Row(regression, (8,), 1000, "kron"),
    "regression 8-50-50-1, diag": Row(regression, (8,), 1000, "diag"),
    "regression 8-50-50-1, last layer full": Row(regression, (8,), 1000, "full", "last_layer"),
}


@dataclass(frozen=True)
class Problem:
    """A row at some number of data.

    Attributes:
        row: the line of the table.
        net: the network.
        x: inputs.
        y: classes [n] or numbers [n, 1].
    """

    row: Row
    net: nn.Sequential
    x: Tensor
    y: Tensor

    @staticmethod
    def make(name: str, num_obs: int) -> "Problem":
        row = ROWS[name]
        torch.manual_seed(0)
        net, x = row.net(), torch.randn(num_obs, *row.input_shape)
        outputs = net(x[:2]).shape[-1]
        y = torch.randint(outputs, (num_obs,)) if row.classification else torch.randn(num_obs, outputs)
        return Problem(row, net, x, y)

    @property
    def batches(self) -> Iterable[Any]:
        if self.row.loader:
            return DataLoader(TensorDataset(self.x, self.y), batch_size=self.row.batch)
        return list(zip(self.x.split(self.row.batch), self.y.split(self.row.batch), strict=True))

    @property
    def num_params(self) -> int:
        """Random ones."""
        part = self.net[-1] if self.row.subset == "last_layer" else self.net
        return sum(value.numel() for value in part.parameters())

    def program(self) -> tuple[Any, AutoDelta]:
        """The network as a Pyro program, and an AutoDelta at its weights."""
        pyro.clear_param_store()
        values = {f"net.{name}": value.detach().clone() for name, value in self.net.named_parameters()}
        model = Program(self.row)
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=values))
        guide(*next(iter(self.batches)))
        return model, guide


class Program(PyroModule):
    """A row's network with Normal priors on its parameters."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.net, self.classification = row.net(), row.classification
        to_pyro_module_(self.net)
        for name, value in list(self.net.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            prior = dist.Normal(0.0, PRIOR_STD).expand(value.shape).to_event(value.dim())
            setattr(self.net.get_submodule(owner), leaf, PyroSample(prior))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        f = self.net(x)
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=f) if self.classification else dist.Normal(f, NOISE).to_event(1)
            return pyro.sample("y", fn, obs=y)
