"""Mixtures of Laplace approximations: of two modes in closed form, of linear programs, at points of any program."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from programs.zoo import linear_data, linear_model, some_theta
from torch.distributions import MixtureSameFamily, MultivariateNormal

import pyro_laplace as pl

PRIOR, LOC, SCALE, NOISE = torch.tensor([0.3, 0.7]).double(), torch.tensor([-9.0, 7.0]).double(), 0.5, 4.0
Y = torch.tensor([-1.5]).double()


def bimodal(y):
    components = dist.Normal(LOC, SCALE)
    t = pyro.sample("t", dist.MixtureSameFamily(dist.Categorical(PRIOR), components))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(t, NOISE), obs=y)


def starts(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"t": torch.tensor(value)} for value in values]


def fit_bimodal(**options: Any) -> pl.LaplaceMixture:
    return pl.fit_laplace(bimodal, (Y,), starts(-8.0, 6.0), **options)


def exact_bimodal() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masses, means and standard deviations of the two modes; the tails of one at the other are e^-400."""
    mass = PRIOR * dist.Normal(LOC, math.hypot(SCALE, NOISE)).log_prob(Y).exp()
    precision = SCALE**-2 + NOISE**-2
    return mass, (LOC / SCALE**2 + Y / NOISE**2) / precision, torch.full((2,), precision**-0.5)


def fit_linear(*seeds: int) -> pl.LaplaceMixture:
    """Posteriors of one program on several data sets: modes as far apart as one likes."""
    return pl.LaplaceMixture([pl.fit_laplace(linear_model(), linear_data(num_obs=8, seed=seed)) for seed in seeds])


def torch_mixture(mixture: pl.LaplaceMixture) -> MixtureSameFamily:
    loc = torch.stack([component.theta for component in mixture.components])
    precision = torch.stack([component.precision.to_dense() for component in mixture.components])
    normals = MultivariateNormal(loc, precision_matrix=precision)
    return MixtureSameFamily(torch.distributions.Categorical(mixture.weights), normals)


def fit_at(case, *seeds: int, **options: Any) -> pl.LaplaceMixture:
    given = [case.flat.constrain(some_theta(case, seed))[0] for seed in seeds]
    return pl.fit_laplace(case.model, case.data, given, polish=False, on_not_a_mode="ignore", **options)


def ensemble(case, *seeds: int) -> pl.LaplaceMixture:
    given = [case.flat.constrain(some_theta(case, seed))[0] for seed in seeds]
    return pl.LaplaceMixture.of_modes(case.model, case.data, given)
