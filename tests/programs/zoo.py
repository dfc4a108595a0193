"""A small zoo of Pyro programs, each with data. Every program is called as `model(x, ..., y=None)`.

Build a case inside a test, not at import: its tensors take the default dtype of the moment.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from oracles.naive import FlatProgram
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A program and its data, one batch as a tuple; row n of each tensor is datum n."""

    model: Callable
    data: tuple[Tensor, ...]
    last_layer: tuple[str, ...] = field(default=())

    def batches(self, size: int) -> list[tuple[Tensor, ...]]:
        return split(self.data, size)

    @property
    def flat(self) -> FlatProgram:
        return FlatProgram(self.model, *self.data)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Everything but the observations."""
        return self.data[:-1]


def split(data: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    """Batches of `size` data; the last one has what is left."""
    num_obs = len(data[0])
    return [tuple(tensor[i : i + size] for tensor in data) for i in range(0, num_obs, size)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def map_guide_at(model: Callable, values: dict[str, Tensor], *args, **kwargs) -> AutoDelta:
    """An AutoDelta at `values`, as after a user's own training."""
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=values))
    guide(*args, **kwargs)
    return guide


def map_guide_at_theta(case: Case, theta: Tensor) -> AutoDelta:
    """An AutoDelta at the point theta."""
    return map_guide_at(case.model, case.flat.constrain(theta)[0], *case.data)


def some_theta(case: Case, seed: int = 1) -> Tensor:
    """A point that is no special point of the program."""
    return 0.5 * torch.randn(case.flat.size, generator=generator(seed))


def normal(scale: float, *shape: int) -> TorchDistributionMixin:
    return dist.Normal(0.0, scale).expand_by(shape).to_event(len(shape))


# --- linear predictors --------------------------------------------------------------------------


def linear_model(noise: float = 0.7, prior_std: float = 1.3) -> Callable:
    """`y ~ Normal(x w, noise)`, `w ~ Normal(0, prior_std)`."""

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        w = pyro.sample("w", normal(prior_std, x.shape[-1]))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    return model


def linear_data(num_obs: int = 40, num_weights: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    x = torch.randn(num_obs, num_weights, generator=g)
    w = torch.randn(num_weights, generator=g)
    return x, x @ w + 0.7 * torch.randn(num_obs, generator=g)


def linear() -> Case:
    return Case(linear_model(), linear_data())


def linear_unknown_noise() -> Case:
    def model(x, y=None):
        w = pyro.sample("w", normal(1.3, x.shape[-1]))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    return Case(model, linear_data())


def multi_output() -> Case:
    """Three outputs a datum, sites in an order that is not alphabetical."""

    def model(x, y=None):
        w = pyro.sample("w", normal(1.0, 2, 3))
        b = pyro.sample("b", normal(2.0, 3))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w + b, torch.tensor([0.3, 0.5, 0.9])).to_event(1), obs=y)

    g = generator()
    return Case(model, (torch.randn(25, 2, generator=g), torch.randn(25, 3, generator=g)))


def logistic() -> Case:
    def model(x, y=None):
        w = pyro.sample("w", normal(1.5, x.shape[-1]))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)

    x, y = linear_data()
    return Case(model, (x, (y > 0).to(x.dtype)))


def logistic_probs() -> Case:
    """`logistic`, said in probabilities."""

    def model(x, y=None):
        w = pyro.sample("w", normal(1.5, x.shape[-1]))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(probs=torch.sigmoid(x @ w + b)), obs=y)

    return Case(model, logistic().data)


def softmax() -> Case:
    def model(x, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1], 4))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    g = generator()
    return Case(model, (torch.randn(50, 3, generator=g), torch.randint(4, (50,), generator=g)))


def softmax_probs() -> Case:
    """`softmax`, said in probabilities."""

    def model(x, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1], 4))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(probs=torch.softmax(x @ w, -1)), obs=y)

    return Case(model, softmax().data)


def poisson() -> Case:
    def model(x, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1]))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)

    g = generator()
    x = torch.randn(40, 3, generator=g)
    return Case(model, (x, torch.poisson((0.5 * x.sum(-1)).exp(), generator=g)))


# --- constrained sites --------------------------------------------------------------------------

GAMMA, BETA = (3.0, 2.0), (2.0, 5.0)


def gamma_poisson() -> Case:
    def model(y=None):
        rate = pyro.sample("rate", dist.Gamma(*GAMMA))
        with pyro.plate("data", 12 if y is None else len(y)):
            return pyro.sample("y", dist.Poisson(rate), obs=y)

    return Case(model, (torch.poisson(torch.full((12,), 4.0), generator=generator()),))


def beta_bernoulli() -> Case:
    def model(y=None):
        probs = pyro.sample("probs", dist.Beta(*BETA))
        with pyro.plate("data", 12 if y is None else len(y)):
            return pyro.sample("y", dist.Bernoulli(probs), obs=y)

    return Case(model, (torch.bernoulli(torch.full((12,), 0.4), generator=generator()),))


def dirichlet_categorical() -> Case:
    """A site whose unconstrained dimension is not its own."""

    def model(y=None):
        probs = pyro.sample("probs", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0, 1.5])))
        with pyro.plate("data", 30 if y is None else len(y)):
            return pyro.sample("y", dist.Categorical(probs), obs=y)

    return Case(model, (torch.randint(4, (30,), generator=generator()),))


def heteroscedastic() -> Case:
    """A head for the loc and one for the scale."""

    def model(x, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1]))
        v = pyro.sample("v", normal(0.5, x.shape[-1]))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, (x @ v).exp()), obs=y)

    return Case(model, linear_data())


def hierarchical() -> Case:
    """Group effects in a plate of their own, indexed by an integer; noncentred, so that the log prior is concave."""

    def model(group, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(group)):
            return pyro.sample("y", dist.Normal((mu + tau * z)[group], 0.5), obs=y)

    g = generator()
    group = torch.randint(5, (40,), generator=g)
    return Case(model, (group, torch.randn(5, generator=g)[group] + 0.5 * torch.randn(40, generator=g)))


def hierarchical_centred() -> Case:
    """The same posterior, centred: its log prior is not concave."""

    def model(group, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", 5):
            effect = pyro.sample("effect", dist.Normal(mu, tau))
        with pyro.plate("data", len(group)):
            return pyro.sample("y", dist.Normal(effect[group], 0.5), obs=y)

    return Case(model, hierarchical().data)


def two_likelihoods() -> Case:
    """A count and a measurement that share their weights."""

    def model(x, count=None, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1]))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("count", dist.Poisson((x @ w).exp()), obs=count)
            return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    x, y = linear_data()
    return Case(model, (x, poisson().data[1], y))


def masked() -> Case:
    """A third of the data masked by the program, the rest weighted by it."""

    def model(x, keep, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1]))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=keep), poutine.scale(scale=0.25):
            return pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)

    x, y = logistic().data
    return Case(model, (x, torch.arange(len(x)) % 3 != 0, y))


def masked_fn() -> Case:
    """`Distribution.mask` in place of a handler, inside `to_event`."""

    def model(x, keep, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1], 3))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1).mask(keep), obs=y)

    x, y = linear_data()
    return Case(model, (x, torch.arange(len(x)) % 3 != 0, torch.stack([y, -y, y**2], -1)))


def log_normal_observed() -> Case:
    """An observed site that is a transformed Normal."""

    def model(x, y=None):
        w = pyro.sample("w", normal(1.0, x.shape[-1]))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.LogNormal(x @ w, sigma), obs=y)

    x, y = linear_data()
    return Case(model, (x, y.exp()))


# --- networks -----------------------------------------------------------------------------------


def mlp_regression() -> Case:
    """A network written out, its noise unknown."""

    def model(x, y=None):
        w1 = pyro.sample("w1", normal(1.0, x.shape[-1], 5))
        b1 = pyro.sample("b1", normal(1.0, 5))
        w2 = pyro.sample("w2", normal(1.0, 5, 1))
        b2 = pyro.sample("b2", normal(1.0, 1))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        f = torch.tanh(x @ w1 + b1) @ w2 + b2
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f[:, 0], sigma), obs=y)

    return Case(model, linear_data(), last_layer=("w2", "b2"))


def mlp_classifier(num_inputs: int = 3, num_hidden: int = 4, num_classes: int = 3, num_obs: int = 30) -> Case:
    """A network written out, no noise site."""

    def model(x, y=None):
        w1 = pyro.sample("w1", normal(1.0, num_inputs, num_hidden))
        b1 = pyro.sample("b1", normal(1.0, num_hidden))
        w2 = pyro.sample("w2", normal(1.0, num_hidden, num_classes))
        b2 = pyro.sample("b2", normal(1.0, num_classes))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1 + b1) @ w2 + b2), obs=y)

    g = generator()
    x = torch.randn(num_obs, num_inputs, generator=g)
    return Case(model, (x, torch.randint(num_classes, (num_obs,), generator=g)), last_layer=("w2", "b2"))


def pyro_module(module: type[nn.Module]) -> Any:
    """`PyroModule[module]`, which is called as `module` is (its annotation is that of `PyroModule`)."""
    return PyroModule[module]


class BayesianNet(PyroModule):
    """`nn.Linear` layers whose weights are `PyroSample`s.

    Its activation is smooth: modes of a small ReLU net lie on kinks, where no gradient vanishes.
    """

    def __init__(self, num_inputs: int = 3, num_hidden: int = 4, num_classes: int = 3):
        super().__init__()
        self.hidden = self._layer(num_inputs, num_hidden)
        self.out = self._layer(num_hidden, num_classes)

    @staticmethod
    def _layer(num_inputs: int, num_outputs: int) -> PyroModule:
        layer = pyro_module(nn.Linear)(num_inputs, num_outputs)
        layer.weight = PyroSample(normal(1.0, num_outputs, num_inputs))
        layer.bias = PyroSample(normal(2.0, num_outputs))
        return layer

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.out(torch.tanh(self.hidden(x)))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def pyro_module_classifier() -> Case:
    return Case(BayesianNet(), mlp_classifier().data, last_layer=("out.weight", "out.bias"))


CANONICAL = [linear, multi_output, logistic, softmax, poisson, gamma_poisson, beta_bernoulli]
"""The GGN of these is the Hessian of the log joint, at every theta."""

OTHERS = [
    linear_unknown_noise,
    logistic_probs,
    softmax_probs,
    dirichlet_categorical,
    heteroscedastic,
    hierarchical,
    two_likelihoods,
    masked,
    masked_fn,
    log_normal_observed,
    mlp_regression,
    mlp_classifier,
    pyro_module_classifier,
]
