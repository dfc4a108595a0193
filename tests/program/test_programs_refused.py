"""Programs without a Laplace approximation, or not as they are written: messages name the site and the remedy."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from programs.zoo import hierarchical, linear_data, normal, split
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = linear_data(12, 2)
    return x.double(), y.double()


def observe(x, y, mean) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


# --- latent sites ---------------------------------------------------------------------------------


def sphere(x, y):
    v = pyro.sample("direction", dist.ProjectedNormal(torch.ones(2)))
    observe(x, y, x @ v)


def uniform_up_to_a_latent(x, y):
    top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
    v = pyro.sample("v", dist.Uniform(0.0, top))
    observe(x, y, x[:, 0] * v)


def pareto_above_a_latent(x, y):
    bottom = pyro.sample("bottom", dist.LogNormal(0.0, 1.0))
    v = pyro.sample("v", dist.Pareto(bottom, 3.0))
    observe(x, y, x[:, 0] * v)


def poisson_latent(x, y):
    count = pyro.sample("count", dist.Poisson(3.0), infer={"enumerate": "parallel"})
    w = pyro.sample("w", normal(1.0, 2))
    observe(x, y, x @ w + count)


def unmarked_latent(x, y):
    kind = pyro.sample("kind", dist.Categorical(torch.ones(3)))
    w = pyro.sample("w", normal(1.0, 3))
    observe(x, y, x[:, 0] * w[kind])


@config_enumerate
def only_discrete(x, y):
    kind = pyro.sample("kind", dist.Categorical(torch.ones(3)))
    observe(x, y, x[:, 0] * kind)


@config_enumerate
def data_without_a_plate(x, y):
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    w = pyro.sample("w", normal(1.0, 2))
    pyro.sample("y", dist.Normal(x @ w + kind, 0.5), obs=y)


@config_enumerate
def scaled_apart(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        with poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(x @ w + kind, 0.5), obs=y)


@config_enumerate
def crossing(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Bernoulli(0.5))
    with columns:
        b = pyro.sample("b", dist.Bernoulli(0.5))
    with rows, columns:
        pyro.sample("y", dist.Normal((x @ w).reshape(3, 4) + a * b, 0.5), obs=y.reshape(3, 4))


def imputed(x, y):
    """Missing covariates: what is unobserved of them is used."""
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        x = pyro.sample("x", normal(1.0, 2), obs=x, obs_mask=torch.arange(len(x)) % 3 != 0)
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


REFUSED: dict[Callable, tuple[str, ...]] = {
    sphere: ("direction", "sphere", "ProjectedNormalReparam"),
    uniform_up_to_a_latent: ("'v'", "'top'", "Uniform", r"Uniform\(0, 1\)"),
    pareto_above_a_latent: ("'v'", "'bottom'", "Pareto", "fixed support"),
    poisson_latent: ("count", "discrete", "by hand"),
    unmarked_latent: ("kind", "discrete", "config_enumerate", "condition"),
    only_discrete: ("kind", "no continuous", "infer_discrete"),
    data_without_a_plate: ("'y'", "no plate", "to_event", "pyro.plate"),
    scaled_apart: ("kind", "'y'", "scale"),
    crossing: ("'a'", "'b'", "cross", "condition"),
    imputed: ("'x'", "obs_mask", "masked_scatter"),
}


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.__name__)
def test_refused(model, entry):
    with pytest.raises(pl.UnsupportedProgram) as error:
        entry(model, data(), progress=False)
    assert_says(error, *REFUSED[model])


def test_a_support_that_depends_on_data_is_fine():
    def model(x, y):
        v = pyro.sample("v", dist.Uniform(y.min(), y.max()))
        observe(x, y, v.expand(len(x)))

    assert list(pl.fit_laplace(model, data(), {"v": data()[1].mean()}).median()) == ["v"]


@config_enumerate
def shared_by_all_data(x, y):
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    w = pyro.sample("w", normal(1.0, 2))
    observe(x, y, x @ w + kind)


def test_a_discrete_site_that_batches_share():
    with pytest.raises(pl.UnsupportedProgram) as error:
        pl.fit_map(shared_by_all_data, split(data(), 5))
    assert_says(error, "outside the plate", "one batch")


def test_what_a_program_says_at_one_value_of_a_discrete_site():
    """A posterior that summed it out cannot be linearised."""
    guide = pl.fit_laplace(shared_by_all_data, data(), {"w": torch.zeros(2)})
    program: Any = Program(shared_by_all_data, guide.latents, guide.observed)
    with pytest.raises(pl.UnsupportedProgram) as error:
        program.run(guide.theta, next(program.chunks(as_data(data()))))
    assert_says(error, "kind", "summed out", "Predictive")


# --- joint modes that do not exist ----------------------------------------------------------------


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = (
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64),
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64),
)


def random_effects(group, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    log_tau = pyro.sample("log_tau", dist.Normal(0.0, 3.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", 5):
        effect = pyro.sample("effect", dist.Normal(mu, log_tau.exp()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(effect[group], noise), obs=y)


def interpolation(x, y):
    w = pyro.sample("w", normal(1.0, x.shape[1]))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    observe_with(noise, x @ w, y)


def observe_with(noise, mean, y) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


def item_response(y):
    """Abilities, difficulties and inverse discriminations can all shrink together: only their priors tell."""
    sigma_a = pyro.sample("sigma_a", dist.HalfCauchy(2.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfCauchy(2.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    people, items = pyro.plate("people", y.shape[0], dim=-2), pyro.plate("items", y.shape[1], dim=-1)
    with people:
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with items:
        a = pyro.sample("a", dist.LogNormal(0.0, sigma_a))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with people, items:
        pyro.sample("y", dist.Bernoulli(logits=a * (ability - b)), obs=y)


def answers() -> torch.Tensor:
    """Of 60 people to 20 items."""
    logits = (0.5 * noise(20)).exp() * (noise(61, 1)[1:] - 0.3 - noise(21)[1:])
    return torch.bernoulli(torch.sigmoid(logits), generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


DEGENERATE = {
    eight_schools: (SCHOOLS, ("'theta'", "'tau'", "non-centred", "LocScaleReparam")),
    random_effects: ((torch.arange(40) % 5, noise(40)), ("'effect'", "'log_tau'", "non-centred", "LocScaleReparam")),
    interpolation: ((noise(10, 20), noise(10)), ("'y'", "'noise'", "fits these data exactly", "prior")),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("model", DEGENERATE, ids=lambda model: model.__name__)
def test_a_scale_that_collapses(model, dtype):
    batch, words = DEGENERATE[model]
    torch.set_default_dtype(dtype)
    try:
        batch = tuple(each.to(dtype) if each.is_floating_point() else each for each in batch)
        with pytest.raises(pl.NotAMode) as error:
            pl.fit_laplace(model, batch, progress=False)
    finally:
        torch.set_default_dtype(torch.float64)
    assert_says(error, "no maximum", "collapses to zero", *words)


def test_a_collapse_in_which_most_of_the_model_shrinks():
    with pytest.raises(pl.NotAMode) as error:
        pl.fit_laplace(item_response, (answers(),), progress=False)
    assert_says(error, "no maximum", "collapses to zero", "'sigma_[ab]'", "non-centred", "LocScaleReparam")


def test_a_scale_that_collapses_from_a_given_point():
    values = {"mu": torch.tensor(5.0), "tau": torch.tensor(1.0), "theta": torch.full((8,), 5.0)}
    with pytest.raises(pl.NotAMode) as error:
        pl.fit_laplace(eight_schools, SCHOOLS, values)
    assert_says(error, "'theta'", "'tau'")


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_the_remedy_of_a_collapse():
    model = poutine.reparam(eight_schools, config={"theta": LocScaleReparam(0.0)})
    guide = pl.fit_laplace(model, SCHOOLS, progress=False, on_not_a_mode="raise")
    assert float(guide.median()["tau"]) > 1.0


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_mode_beside_two_singularities(dtype):
    """Growth curves with flat priors on both spreads, which are all but zero where a search first ends."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([-14.0, -7.0, 0.0, 7.0, 14.0], dtype=dtype)
    z = torch.randn(7, 20, generator=generator, dtype=torch.float64).to(dtype)
    y = 242 + 14 * z[0, :, None] + (6.2 + 0.8 * z[1, :, None]) * x + 4 * z[2:].T

    def model(x, y):
        a, b = (pyro.sample(name, dist.Normal(0.0, 100.0)) for name in "ab")
        scales = [pyro.sample(f"scale_{name}", dist.ImproperUniform(constraints.positive, (), ())) for name in "aby"]
        with pyro.plate("rats", len(y)):
            intercept = pyro.sample("intercept", dist.Normal(a, scales[0]))
            slope = pyro.sample("slope", dist.Normal(b, scales[1]))
        pyro.sample("y", dist.Normal(intercept[:, None] + slope[:, None] * x, scales[2]).to_event(2), obs=y)

    mode = pl.fit_laplace(model, (x, y), progress=False).median()
    # at a mode the scale is the root mean square of what it spreads, up to the one scale that the Jacobian adds
    for name, site in (("a", "intercept"), ("b", "slope")):
        spread = (mode[site] - mode[name]).square().mean().sqrt()
        assert 0.9 < float(mode[f"scale_{name}"] / spread) < 1.1
    assert 8 < float(mode["scale_a"]) < 20
    assert 0.4 < float(mode["scale_b"]) < 1.2


def test_a_small_noise_is_no_collapse():
    """Data that a program fits well, but not exactly."""
    x = noise(30, 2)
    y = x @ torch.tensor([1.0, -2.0]) + 1e-5 * noise(30)
    guide = pl.fit_laplace(interpolation, (x, y), progress=False, on_not_a_mode="raise")
    assert float(guide.median()["noise"]) == pytest.approx(1e-5, rel=0.5)


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_a_hierarchy_that_has_a_mode():
    case = hierarchical()
    assert float(pl.fit_laplace(case.model, case.data, progress=False).median()["tau"]) > 0
