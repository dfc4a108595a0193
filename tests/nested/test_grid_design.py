"""Grids and weighted draws over surfaces whose integral, means and sds are known, and of which some points fail."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_laplace as pl
from pyro_laplace.inner.problem import InnerSolved
from pyro_laplace.nested.design import by_weighted_draws
from pyro_laplace.nested.grid import on_grid
from pyro_laplace.nested.skewed import Skewed, fitted_to
from pyro_laplace.nested.surface import HyperMode, HyperSurface, Points, Weighted
from pyro_laplace.settings import settings


@pytest.fixture(autouse=True)
def double(float64):
    """Everything is compared in double precision."""


class Known(HyperSurface):
    """A normalised density as a surface; where `fails`, there is no inner mode."""

    def __init__(
        self, log_density: Callable[[Tensor], Tensor], size: int, fails: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.log_density, self.fails, self.asked = log_density, fails, 0
        program = SimpleNamespace(latents={"tau": SimpleNamespace(size=size)}, unpack=lambda theta: {"tau": theta})
        of = SimpleNamespace(program=program, hyper=("tau",), inner=("u",), start=(None, None), theta=lambda x, h: h)
        vars(self)["of"] = of

    def at(self, h: Tensor) -> Points:
        self.asked += len(h)
        value = self.log_density(h)
        if self.fails is not None:
            value = torch.where(self.fails(h), -torch.inf, value)
        return Points(h, value, value, Mock(spec=InnerSolved))

    def mode(self, h: Tensor) -> HyperMode:
        """At h, where it is known to be, with the curvature there."""
        hessian = torch.autograd.functional.hessian(lambda at: self.log_density(at.unsqueeze(0))[0], h)
        values, vectors = torch.linalg.eigh(-hessian)
        return HyperMode(h, float(self.log_density(h.unsqueeze(0))[0]), vectors / values.sqrt())


class LogGamma:
    """``h = M g`` with the first of g logarithms of Gamma(a, 1) variables, the rest standard normal.

    Its tails to the left are exponential, as that of a log scale that the data hardly show.
    """

    def __init__(self, mix: Tensor, tails: int, a: float = 0.7) -> None:
        self.mix, self.tails, self.a, size = mix, tails, torch.tensor(a), len(mix)
        rest = size - tails
        self.at_mode = mix @ torch.cat([self.a.log().expand(tails), torch.zeros(rest)])
        self.mean = mix @ torch.cat([torch.digamma(self.a).expand(tails), torch.zeros(rest)])
        variance = torch.cat([torch.polygamma(1, self.a).expand(tails), torch.ones(rest)])
        self.sd = (mix.square() @ variance).sqrt()

    def __call__(self, h: Tensor) -> Tensor:
        g, rest = torch.linalg.solve(self.mix, h.mT).mT.tensor_split((self.tails,), 1)
        log_gamma = self.a * g - g.exp() - torch.lgamma(self.a)
        normal = -0.5 * (rest.square() + math.log(2 * math.pi))
        return log_gamma.sum(1) + normal.sum(1) - torch.linalg.slogdet(self.mix)[1]


def mixed(size: int) -> Tensor:
    """Coordinates of different scales, correlated."""
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(3)).tril(-1)
    return torch.logspace(-1, 1, size).diag() @ (torch.eye(size) + 0.3 * noise)


def moments(found: Weighted) -> tuple[Tensor, Tensor]:
    """Means and sds of the points."""
    h = found.h
    mean = found.weights @ h
    return mean, (found.weights @ (h - mean).square()).sqrt()


# --- many coordinates -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "tails"), [(4, 0), (4, 1), (5, 2), (6, 1), (7, 3)])
@pytest.mark.parametrize("mix", [torch.eye, mixed])
def test_the_design_finds_exponential_tails(size, tails, mix):
    truth = LogGamma(mix(size).double(), tails)
    surface = Known(truth, size)
    found = by_weighted_draws(surface, surface.mode(truth.at_mode))
    mean, sd = moments(found)
    assert float(((mean - truth.mean) / truth.sd).abs().max()) < 0.1
    assert float((sd / truth.sd).log().abs().max()) < 0.1
    assert found.log_evidence == pytest.approx(0.0, abs=0.08)
    assert len(found.weights) <= settings.design_kept
    assert float(found.weights.sum()) == pytest.approx(1.0)


def test_the_design_is_the_same_whatever_the_axes_order_and_signs():
    truth = LogGamma(mixed(4), 1)
    surface = Known(truth, 4)
    mode = surface.mode(truth.at_mode)
    turned = HyperMode(mode.h, mode.value, mode.axes[:, [2, 0, 3, 1]] * torch.tensor([1.0, -1.0, -1.0, 1.0]))
    one, other = by_weighted_draws(surface, mode), by_weighted_draws(surface, turned)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-9)
    assert torch.allclose(torch.stack(moments(one)), torch.stack(moments(other)), atol=1e-9)


def test_fewer_points_have_the_moments_of_all():
    truth = LogGamma(mixed(5), 1)
    surface = Known(truth, 5)
    mode = surface.mode(truth.at_mode)
    with settings.using(design_kept=100_000):
        everything = by_weighted_draws(surface, mode)
    with settings.using(design_kept=128):
        few = by_weighted_draws(surface, mode)
    assert len(few.weights) == 128
    assert len(everything.weights) >= 2 * settings.design_points
    assert torch.allclose(torch.stack(moments(few)), torch.stack(moments(everything)), atol=1e-6)
    assert few.log_evidence == everything.log_evidence


def test_the_design_tells_when_its_points_do_not_do():
    def banana(h):
        return dist.Normal(0.0, 1.0).log_prob(h).sum(1) - (h[:, 0].square() - h[:, 1]).square() / 0.02

    surface = Known(banana, 4)
    with settings.using(design_rounds=1), pytest.warns(pl.LaplaceWarning, match="of 'tau' no better than"):
        by_weighted_draws(surface, surface.mode(torch.zeros(4)))


def test_a_skewed_density_integrates_to_one_and_is_that_of_its_draws():
    root = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    density = Skewed(torch.tensor([0.3, -1.0]), root, torch.tensor([2.0, 0.5]), torch.tensor([0.5, 1.0]))
    step = 0.04
    axis = torch.arange(-40.0, 40.0, step) + step / 2
    cells = torch.cartesian_prod(axis, axis)
    mass = density.log_density(cells).exp() * step**2
    assert float(mass.sum()) == pytest.approx(1.0, abs=0.02)  # of a density that jumps at its center
    drawn = density.draw(2**13, 0)
    for low, high in ((-10.0, -1.2), (-1.2, 0.4), (0.4, 10.0)):
        share = [((each > low) & (each < high)).all(1).double() for each in (drawn, cells)]
        assert float(share[0].mean()) == pytest.approx(float(share[1] @ mass), abs=0.02)


def test_a_density_fitted_to_its_own_draws_is_itself():
    root = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    density = Skewed(torch.tensor([0.3, -1.0]), root, torch.tensor([2.0, 0.5]), torch.tensor([0.5, 1.0]))
    least = Skewed(density.center, root, torch.full((2,), 0.1), torch.full((2,), 0.1))
    again = fitted_to(density.draw(2**14, 0), torch.full((2**14,), 2.0**-14), least)
    wider = (settings.design_freedom / (settings.design_freedom - 2)) ** 0.5  # sd of a t
    assert torch.allclose(again.center, density.center, atol=0.03)
    for name in ("left", "right"):
        assert torch.allclose(getattr(again, name)[0], wider * getattr(density, name)[0], rtol=0.1)
    assert torch.allclose(again.root @ again.root.mT, root @ root.mT, atol=0.05)


# --- points that fail -------------------------------------------------------------------------------


def line(fails: Callable[[Tensor], Tensor] | None = None) -> tuple[Known, HyperMode, LogGamma]:
    """One coordinate: a grid of step 0.3 sd."""
    truth = LogGamma(torch.eye(1), 1, 2.0)
    surface = Known(truth, 1, fails)
    return surface, surface.mode(truth.at_mode), truth


def grid_place(mode: HyperMode, number: int) -> Callable[[Tensor], Tensor]:
    """Whether h is that point of the grid."""
    place = mode.place(torch.tensor([[number * settings.grid_step]]))
    return lambda h: (h - place).abs()[:, 0] < 1e-6


@pytest.mark.parametrize("number", [2, -3])
def test_a_grid_steps_over_a_point_that_failed_and_says_so(number):
    surface, mode, truth = line()
    whole = on_grid(surface, mode)
    asked, surface.fails = surface.asked, grid_place(mode, number)
    with pytest.warns(pl.LaplaceWarning, match=r"'u'.* at 1 of .* hyper points.* is left out .*tau = \["):
        found = on_grid(surface, mode)
    assert surface.asked == 2 * asked
    assert len(found.weights) == len(whole.weights) - 1
    mean, sd = moments(found)
    assert float((mean - truth.mean).abs() / truth.sd) < 0.15
    assert float((sd / truth.sd).log().abs()) < 0.1


def test_two_points_that_fail_are_an_end_and_that_is_told():
    surface, mode, _ = line()
    on_grid(surface, mode)
    asked, edge = surface.asked, mode.place(torch.tensor([[1.9 * settings.grid_step]]))
    surface.fails = lambda h: h[:, 0] > edge[0, 0]
    with pytest.warns(pl.LaplaceWarning, match="at 2 of "):
        found = on_grid(surface, mode)
    assert surface.asked < 2 * asked
    assert max(float(batch.h.max()) for batch in found.batches) < float(edge) + 3 * settings.grid_step


def test_a_point_that_failed_where_nothing_weighs_is_not_told():
    surface, mode, _ = line()
    edge = mode.place(torch.tensor([[-20 * settings.grid_step]]))
    surface.fails = lambda h: h[:, 0] < edge[0, 0]
    on_grid(surface, mode)  # a warning is an error


def test_a_design_tells_of_draws_that_failed():
    truth = LogGamma(mixed(4), 1)
    surface = Known(truth, 4, lambda h: h[:, 1] > truth.mean[1])
    with pytest.warns(pl.LaplaceWarning, match="left out"):
        by_weighted_draws(surface, Known(truth, 4).mode(truth.at_mode))


def test_a_grid_that_is_cut_says_so():
    truth = LogGamma(torch.eye(2), 1)
    surface = Known(truth, 2)
    with settings.using(grid_most=20), pytest.warns(pl.LaplaceWarning, match=r"ended at \d+ points.*grid_most"):
        on_grid(surface, surface.mode(truth.at_mode))


def test_a_failed_search_is_told_where_the_fit_is_called(monkeypatch):
    def model(y):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(u, 0.5), obs=y)

    def at(surface, h):
        points = plain(surface, h)
        lost = (low < h[:, 0].exp()) & (h[:, 0].exp() < high)
        value, marginal = (torch.where(lost, -torch.inf, each) for each in (points.value, points.marginal))
        return Points(points.h, value, marginal, points.solved)

    plain = HyperSurface.at
    y = torch.tensor([1.1, 0.4, 2.0, -1.5, 2.4, -0.3])
    whole = pl.fit_nested_laplace(model, (y,), progress=False)
    order = whole.hyper_points["tau"].argsort()
    beyond = whole.hyper_points["tau"][order[int(whole.weights[order].argmax()) + 2]]
    monkeypatch.setattr(HyperSurface, "at", at)
    low, high = beyond - 1e-6, beyond + 1e-6
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        guide = pl.fit_nested_laplace(model, (y,), progress=False)
    assert [each.category for each in told] == [pl.LaplaceWarning]
    assert not Path(told[0].filename).is_relative_to(Path(pl.__file__).parent)
    assert float(guide.hyper_points["tau"].max()) == float(whole.hyper_points["tau"].max())
    high = torch.inf
    with pytest.warns(pl.LaplaceWarning, match="left out"):
        pl.fit_nested_laplace(model, (y,), outer="laplace", progress=False)
