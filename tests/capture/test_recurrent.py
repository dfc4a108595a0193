"""Recurrent networks in single precision, whose kernels have fewer derivatives, against double precision."""

import copy

import pytest
import torch
from pyro import poutine
from torch import nn
from torch.backends import mkldnn
from torch.func import functional_call
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace._autodiff import hessian, jacobian, jvp, push_forward

CELLS = [nn.LSTM, nn.GRU, nn.RNN]


class Recurrent(nn.Module):
    """A linear layer on the last step's state."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.out = cell(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


def series():
    return torch.randn(20, 5, 2), torch.randn(20)


def regression(network):
    return pl.bayesianize(network, prior=pl.nn.FanIn(), likelihood=pl.nn.Regression(noise=0.3))


def of_weights(network, x):
    """The network's outputs as a function of its joined weights, and these."""
    shapes = {name: weight.shape for name, weight in network.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def outputs(theta):
        parts = zip(shapes.items(), theta.split(sizes), strict=True)
        return functional_call(network, {name: part.view(shape) for (name, shape), part in parts}, x).squeeze(-1)

    return outputs, torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad])
def test_derivatives(cell, grad):
    network, (x, _) = Recurrent(cell), series()
    outputs, theta = of_weights(network, x)
    exact, theta64 = of_weights(copy.deepcopy(network).double(), x.double())
    tangent = torch.randn_like(theta)
    with grad():
        rows, forward = jacobian(outputs, theta), jvp(outputs, theta, tangent)[1]
        square = hessian(lambda theta: outputs(theta).square().sum(), theta)
    expected = torch.func.jacrev(exact)(theta64)
    assert_close(rows.double(), expected, rtol=1e-4, atol=1e-5)
    assert_close(forward.double(), expected @ tangent.double(), rtol=1e-4, atol=1e-5)
    expected = torch.func.hessian(lambda theta: exact(theta).square().sum())(theta64)
    assert_close(square.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_the_linearised_program(cell):
    network, (x, y) = Recurrent(cell), series()
    weights = pl.fit_laplace(regression(network), (x, y), progress=False).median()
    predictors = []
    for dtype in (torch.float32, torch.float64):
        model = regression(copy.deepcopy(network).to(dtype))
        mode, inputs = {name: weight.to(dtype) for name, weight in weights.items()}, x.to(dtype)
        guide = pl.fit_laplace(model, (inputs, y.to(dtype)), mode, polish=False, on_not_a_mode="ignore")
        moved = {name: 1.1 * weight + 0.1 for name, weight in mode.items()}
        trace = poutine.trace(poutine.condition(pl.linearize(model, guide), moved)).get_trace(inputs)
        predictors.append(trace.nodes["y"]["fn"].mean.double())
    assert_close(*predictors, rtol=1e-4, atol=1e-4)


def test_fit_map():
    x, y = series()
    model = regression(Recurrent(nn.LSTM))
    mode = pl.fit_map(model, (x, y), progress=False).median()
    fitted = poutine.trace(poutine.condition(model, mode)).get_trace(x).nodes["y"]["fn"].mean
    assert (fitted - y).square().mean() < 0.5 * y.square().mean()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_choice_of_kernels_is_left_as_it_was(enabled):
    seen = []

    def failing(theta):
        seen.append(mkldnn.enabled)
        raise NotImplementedError("no forward AD with mkldnn_rnn_layer")

    before = mkldnn.enabled
    mkldnn.enabled = enabled
    try:
        for derivative in (
            hessian,
            lambda fn, theta: jvp(fn, theta, theta),
            lambda fn, theta: push_forward(fn, theta, theta),
        ):
            with pytest.raises(NotImplementedError):
                derivative(failing, torch.zeros(2))
            assert mkldnn.enabled == enabled
    finally:
        mkldnn.enabled = before
    assert seen[0] is False
