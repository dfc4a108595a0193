"""Programs like those of `captured`, written as modules whose weights are drawn: `MODULES`, by name."""

import torch
from programs.captured import classes, normal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn


class Module(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Sequential](PyroModule[nn.Linear](4, 3), nn.Tanh(), PyroModule[nn.Linear](3, 3))
        for layer in (self.net[0], self.net[2]):
            layer.weight = PyroSample(normal(*layer.weight.shape))
            layer.bias = PyroSample(normal(*layer.bias.shape))

    def forward(self, x, y):
        classes(self.net(x), y)


class RecurrentCell(PyroModule):
    def __init__(self):
        super().__init__()
        self.cell = random_weights(PyroModule[nn.LSTM](2, 3, batch_first=True))

    def forward(self, x, y):
        classes(self.cell(x.reshape(-1, 2, 2))[0][:, -1], y)


class Attention(PyroModule):
    def __init__(self):
        super().__init__()
        self.attention = random_weights(to_pyro(nn.MultiheadAttention(4, 2, batch_first=True)))
        self.head = random_weights(PyroModule[nn.Linear](4, 3))

    def forward(self, x, y):
        tokens = torch.stack([x, x.sin(), x.cos()], 1)
        classes(self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)), y)


class Transformer(PyroModule):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, dropout=0.0)
        self.layer = random_weights(to_pyro(layer))
        self.head = random_weights(PyroModule[nn.Linear](4, 3))

    def forward(self, x, y):
        classes(self.head(self.layer(torch.stack([x, x.sin(), x.cos()], 1)).mean(1)), y)


def to_pyro(module):
    to_pyro_module_(module)
    return module


def random_weights(module):
    for owner in list(module.modules()):
        for name, value in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, PyroSample(normal(*value.shape)))
    return module


MODULES = {
    "module": (Module, 0),
    "recurrent_cell": (RecurrentCell, 84),
    "attention_module": (Attention, 0),
    "transformer": (Transformer, 0),
}
