"""`curvature="auto"` against dense Hessians; what is said of expected information that is not that of the data."""

import warnings
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.zoo import generator
from pyro import poutine
from torch import Tensor, nn
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def design(num_obs: int = 120, seed: int = 0) -> Tensor:
    return torch.cat([torch.ones(num_obs, 1), torch.randn(num_obs, 2, generator=generator(seed))], 1)


def coefficients() -> Tensor:
    return pyro.sample("b", dist.Normal(0.0, 3.0).expand([3]).to_event(1))


# --- regressions whose expected information is not the observed one -----------------------------------


def weibull(x, y=None):
    f, shape = x @ coefficients(), pyro.sample("shape", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Weibull(f.exp(), shape), obs=y)


def student(x, y=None):
    f, scale = x @ coefficients(), pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(3.0, f, scale), obs=y)


def gamma(x, y=None):
    f, shape = x @ coefficients(), pyro.sample("shape", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Gamma(shape, shape * (-f).exp()), obs=y)


def growth(x, y=None):
    """Logistic growth: the predictor is not linear in its coefficients."""
    top, rate = pyro.sample("top", dist.LogNormal(1.0, 1.0)), pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(top * (rate * x[:, 1]).sigmoid(), 0.3), obs=y)


def data_of(model) -> tuple[Tensor, Tensor]:
    x, g = design(), generator(1)
    f = x @ torch.tensor([0.3, 0.6, -0.4])
    noise = torch.rand(len(x), generator=g)
    if model is growth:
        return x, 3.0 * (1.5 * x[:, 1]).sigmoid() + 0.6 * (noise - 0.5)
    if model is student:
        return x, f + torch.tan(2.5 * (noise - 0.5))
    return x, f.exp() * (-noise.log()) ** 0.6


def dense_hessian(model, data, guide) -> Tensor:
    """Minus the Hessian of the log joint of the unconstrained sites, written by hand for what these models share."""
    x, y = data
    names = list(guide.layout)

    def log_joint(theta: Tensor) -> Tensor:
        parts = {name: theta[guide.layout[name]] for name in names}
        if model is growth:
            top, rate = parts["top"].exp(), parts["rate"].exp()
            prior = dist.Normal(1.0, 1.0).log_prob(parts["top"]) + dist.Normal(0.0, 1.0).log_prob(parts["rate"])
            return prior.sum() + dist.Normal(top * (rate * x[:, 1]).sigmoid(), 0.3).log_prob(y).sum()
        (last,) = (theta[guide.layout[name]] for name in names if name != "b")
        f, second = x @ parts["b"], last.exp()
        prior = dist.Normal(0.0, 3.0).log_prob(parts["b"]).sum() + dist.Normal(0.0, 1.0).log_prob(last).sum()
        own = {
            weibull: lambda: dist.Weibull(f.exp(), second),
            student: lambda: dist.StudentT(3.0, f, second),
            gamma: lambda: dist.Gamma(second, second * (-f).exp()),
        }[model]()
        return prior + own.log_prob(y).sum()

    return -torch.autograd.functional.hessian(log_joint, guide.theta)


@pytest.mark.parametrize("model", [weibull, student, gamma, growth])
def test_small_programs_have_the_observed_information(model):
    data = data_of(model)
    guide = pl.fit_laplace(model, data, progress=False)
    assert guide.curvature == "hessian"
    assert_close(guide.precision.to_dense(), dense_hessian(model, data, guide), rtol=1e-6, atol=1e-6)


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def hidden_layer(x, y=None):
    w, v = (
        pyro.sample("w", dist.Normal(0, 1).expand([3, 4]).to_event(2)),
        pyro.sample("v", dist.Normal(0, 1).expand([4]).to_event(1)),
    )
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((torch.tanh(x @ w) @ v).exp()), obs=y)


def two_vectors(x, y=None):
    """Two sites whose sum is the predictor: no layer upon a layer."""
    b, c = coefficients(), pyro.sample("c", dist.Normal(0, 1).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ b + x[:, 1:].square() @ c).exp()), obs=y)


def scaled(x, y=None):
    """A scale that is one number times a vector."""
    tau, z = pyro.sample("tau", dist.LogNormal(0, 1)), pyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((tau * (x @ z)).exp()), obs=y)


def counts(num_obs: int = 120) -> tuple[Tensor, Tensor]:
    x = design(num_obs)
    return x, torch.poisson((x @ torch.tensor([0.3, 0.6, -0.4])).exp(), generator=generator(2))


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (hidden_layer, {}, "ggn"),
        (two_vectors, {}, "hessian"),
        (scaled, {}, "hessian"),
        (two_vectors, {"structure": "diag"}, "hessian"),
        (two_vectors, {"structure": "block"}, "hessian"),
        (two_vectors, {"structure": "kron"}, "ggn"),
        (two_vectors, {"structure": {"b": "full", "c": "kron"}}, "ggn"),
        (two_vectors, {"curvature": "ggn"}, "ggn"),
        (two_vectors, {"curvature": "empirical_fisher"}, "empirical_fisher"),
    ],
)
@pytest.mark.filterwarnings("ignore::pyro_laplace.LaplaceWarning")
def test_what_auto_is(model, options, expected):
    guide = pl.fit_laplace(model, counts(), progress=False, **options)
    assert guide.curvature == expected


def test_a_bayesianized_net_and_a_large_program_keep_gauss_newton():
    net = pl.bayesianize(Net(), pl.nn.Isotropic(1.0), pl.nn.Regression(0.5))
    x, y = counts(30)
    assert pl.fit_laplace(net, (x, y), progress=False).curvature == "ggn"
    with pl.settings.using(small=2):
        assert pl.fit_laplace(two_vectors, (x, y), progress=False).curvature == "ggn"


def test_auto_is_one_curvature_for_all_components():
    """At one start the Hessian is positive definite, at the other it is not."""
    x, y = data_of(growth)
    starts = [
        {"top": torch.tensor(3.0), "rate": torch.tensor(1.5)},
        {"top": torch.tensor(0.1), "rate": torch.tensor(40.0)},
    ]
    alone = [pl.fit_laplace(growth, (x, y), start, polish=False, on_not_a_mode="ignore").curvature for start in starts]
    mixture = pl.fit_laplace(growth, (x, y), starts, polish=False, on_not_a_mode="ignore", weights="equal")
    assert alone == ["hessian", "ggn"]
    assert [each.curvature for each in mixture.components] == ["ggn", "ggn"]


# --- an explicit Gauss-Newton that is not the information of the data -----------------------------------


def censored(x, time, event):
    """Log-normal waits, of which those that were cut off are masked and come in by a factor."""
    f = x @ coefficients()
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=event):
            pyro.sample("time", dist.Weibull(f.exp(), 1.5), obs=time)
        with poutine.mask(mask=~event):
            pyro.factor("alive", -((time / f.exp()) ** 1.5))


def cut_off(num_obs: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    x, g = design(num_obs), generator(3)
    wait = (x @ torch.tensor([0.3, 0.6, -0.4])).exp() * (-torch.rand(num_obs, generator=g).log()) ** (1 / 1.5)
    return x, wait.clamp(max=1.2), wait < 1.2


class Doubled(dist.TorchDistribution):
    """A Normal density; what is drawn from it has twice its scale."""

    arg_constraints: ClassVar[dict] = {}
    support = dist.constraints.real

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape, torch.Size(), validate_args=False)

    def log_prob(self, value):
        return dist.Normal(self.loc, self.scale).log_prob(value)

    def sample(self, sample_shape=()):
        return dist.Normal(self.loc, 2 * self.scale).sample(torch.Size(sample_shape))

    def expand(self, batch_shape, _instance=None):
        return Doubled(self.loc.expand(batch_shape), self.scale)


def untrue(x, y=None):
    f = x @ coefficients()
    with pyro.plate("data", len(x)):
        pyro.sample("y", Doubled(f, 0.7), obs=y)


def many(x, time, event):
    """The same waits with more coordinates than a Hessian is taken of."""
    b = pyro.sample("b", dist.Normal(0.0, 0.1).expand([300]).to_event(1))
    f = 0.3 + x[:, 1:].repeat(1, 150) @ b
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=event):
            pyro.sample("time", dist.Exponential((-f).exp()), obs=time)
        with poutine.mask(mask=~event):
            pyro.factor("alive", -time * (-f).exp())


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        (censored, cut_off, {"curvature": "ggn"}),
        (censored, cut_off, {"curvature": "ggn", "structure": "diag"}),
        (many, cut_off, {}),
        (untrue, lambda: data_of(student), {"curvature": "ggn"}),
    ],
)
def test_what_is_not_the_information_of_the_data_is_told(model, data, options):
    with pytest.warns(pl.LaplaceWarning, match=r"for '(time|y)'"):
        pl.fit_laplace(model, data(), progress=False, **options)


def test_censoring_by_default_has_the_observed_information():
    x, time, event = cut_off()
    guide = pl.fit_laplace(censored, (x, time, event), progress=False)

    def energy(b: Tensor) -> Tensor:
        f = x @ b
        log_lik = dist.Weibull(f.exp(), torch.tensor(1.5)).log_prob(time) * event - (time / f.exp()) ** 1.5 * ~event
        return b.square().sum() / 18 - log_lik.sum()

    expected = torch.func.hessian(energy)(guide.theta)
    assert_close(guide.precision.to_dense(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("curvature", ["auto", "ggn"])
@pytest.mark.parametrize("model", [two_vectors, hidden_layer])
def test_what_fits_is_passed_in_silence(model, curvature):
    with warnings.catch_warnings():
        warnings.simplefilter("error", pl.LaplaceWarning)
        pl.fit_laplace(model, counts(), curvature=curvature, progress=False)


# --- the mode far from the mass -----------------------------------------------------------------------


def schools(y=None, num_groups=30):
    mean, spread = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("spread", dist.HalfCauchy(2.0))
    raw = pyro.sample("raw", dist.Normal(0.0, 1.0).expand([num_groups]).to_event(1))
    with pyro.plate("data", num_groups):
        pyro.sample("y", dist.Normal(mean + spread * raw, 1.5), obs=y)


def unseen(x, y, missing):
    """A covariate of which half is missing."""
    slope, noise = pyro.sample("slope", dist.Normal(0.0, 2.0)), pyro.sample("noise", dist.HalfNormal(1.0))
    gaps = pyro.sample("gaps", dist.Normal(0.0, 1.0).expand([int(missing.sum())]).to_event(1))
    filled = x.masked_scatter(missing, gaps)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * filled, noise), obs=y)


def half_missing() -> tuple[Tensor, Tensor, Tensor]:
    g = generator(5)
    x = torch.randn(60, generator=g)
    y = x + 0.4 * torch.randn(60, generator=g)
    missing = torch.arange(60) < 35
    return torch.where(missing, 0.0, x), y, missing


@pytest.mark.parametrize(
    ("model", "data", "site"),
    [
        (schools, lambda: (torch.randn(30, generator=generator(4)) * 1.8,), "spread"),
        (unseen, half_missing, "noise"),
    ],
)
def test_a_mode_far_from_the_mass_is_told(model, data, site):
    with pytest.warns(pl.LaplaceWarning, match=f"mass.*'{site}'.*fit_nuts"):
        pl.fit_laplace(model, data(), progress=False)


@pytest.mark.parametrize("model", [weibull, student, gamma, growth])
@pytest.mark.parametrize("few", [False, True])
def test_a_mode_amid_the_mass_is_not(model, few):
    data = tuple(each[:15] if few else each for each in data_of(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", pl.LaplaceWarning)
        pl.fit_laplace(model, data, progress=False)


# --- latents for each datum ----------------------------------------------------------------------------


def local(x, y=None):
    with pyro.plate("data", len(x)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Poisson((x[:, 0] + effect).exp()), obs=y)


def by_group(x, y=None):
    """Groups that every batch measures again, in a plate of their own."""
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ effect).exp()), obs=y)


def test_a_latent_for_each_datum_wants_one_batch():
    x, y = counts(20)
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]
    with pytest.raises(pl.UnsupportedProgram, match=r"'effect'.*one batch"):
        pl.fit_laplace(local, batches, progress=False)
    with pytest.raises(pl.UnsupportedProgram, match=r"'effect'.*one batch"):
        pl.fit_map(local, batches, progress=False)
    assert pl.fit_laplace(local, [(x, y)], progress=False).latent_dim == 20
    assert pl.fit_laplace(by_group, batches, progress=False).latent_dim == 3


# --- what a newcomer's program was silently wrong in --------------------------------------------------


def horseshoe(x, y=None):
    """A scale for each coefficient: a product of two vectors, as in a network, and a funnel."""
    local = pyro.sample("local", dist.HalfCauchy(torch.ones(3)).to_event(1))
    raw = pyro.sample("raw", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ (local * raw), 0.5), obs=y)


def test_the_funnel_of_a_horseshoe_is_told():
    x, g = design(40), generator(6)
    y = 2 * x[:, 1] + 0.5 * torch.randn(40, generator=g)
    with pytest.warns(pl.LaplaceWarning, match=r"mass.*'local'"):
        pl.fit_laplace(horseshoe, (x, y), progress=False)


def level_and_field(y=None):
    """A flat level and a flat field of which only differences have a prior: their sum alone is known."""
    level = pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
    field = pyro.sample("field", dist.ImproperUniform(dist.constraints.real_vector, (), (12,)))
    pyro.factor("smooth", -5.0 * field.diff().square().sum())
    with pyro.plate("data", 12):
        pyro.sample("y", dist.Poisson((level + field).exp()), obs=y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("curvature", ["auto", "ggn"])
def test_what_nothing_determines_is_refused(dtype, curvature):
    torch.set_default_dtype(dtype)
    try:
        y = torch.poisson(torch.full((12,), 8.0), generator=generator(7))
        with pytest.raises(pl.IndefiniteCurvature, match=r"'field'.*'level'|'level'.*'field'"):
            pl.fit_laplace(level_and_field, (y,), curvature=curvature, progress=False)
    finally:
        torch.set_default_dtype(torch.float64)


def test_a_costly_program_is_drawn_one_by_one_or_not_at_all():
    data = (torch.randn(30, generator=generator(4)) * 1.8,)
    with pl.settings.using(pass_elements=1), pytest.warns(pl.LaplaceWarning, match=r"mass.*'spread'"):
        pl.fit_laplace(schools, data, progress=False)
    with pl.settings.using(mass_elements=1), warnings.catch_warnings():
        warnings.simplefilter("error", pl.LaplaceWarning)
        pl.fit_laplace(schools, data, progress=False)
