"""Which `pyro.param`s "auto" takes for hyperparameters, and at which values a posterior is used."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from held import put, store_values
from oracles.naive import FlatProgram
from programs.zoo import generator
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def positive(name: str, value: float | list[float]) -> Tensor:
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def data(num_obs: int = 20, inputs: int = 3) -> tuple[Tensor, Tensor]:
    g = generator()
    x = torch.randn(num_obs, inputs, generator=g)
    return x, torch.sin(x[:, 0]) + 0.3 * torch.randn(num_obs, generator=g)


def found(model: Callable, *batch: Tensor, **options: Any) -> list[str]:
    """What the guide says that it was built at."""
    point = FlatProgram(model, *batch)
    with torch.no_grad():
        values = point.constrain(torch.zeros(point.size))[0]
    options |= {"polish": False, "on_not_a_mode": "ignore", "progress": False}
    return list(pl.fit_laplace(model, batch, values, **options).hyperparameters)


# --- what "auto" finds ------------------------------------------------------------------------------------


def observed_as(family: Callable[..., Any]) -> Callable:
    """One prior scale, a location's shift and slope, and a dispersion."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 1.0)).to_event(1))
        f = x @ w + pyro.param("shift", torch.tensor(0.1)) + x[:, 0] * positive("slope", 0.2)
        with pyro.plate("data", len(x)):
            pyro.sample("y", family(f, positive("dispersion", 1.5)), obs=y)

    return model


FAMILIES = {
    "Normal": lambda f, s: dist.Normal(f, s),
    "StudentT": lambda f, s: dist.StudentT(4.0, f, s),
    "Laplace": lambda f, s: dist.Laplace(f, s),
    "Cauchy": lambda f, s: dist.Cauchy(f, s),
    "LogNormal": lambda f, s: dist.LogNormal(f, s),
    "Gamma": lambda f, s: dist.Gamma(s, s / f.exp()),
    "NegativeBinomial": lambda f, s: dist.NegativeBinomial(s, logits=f - s.log()),
    "GammaPoisson": lambda f, s: dist.GammaPoisson(s, s / f.exp()),
    "Beta": lambda f, s: dist.Beta(f.sigmoid() * s, (1 - f.sigmoid()) * s),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_prior_scales_and_dispersion(name):
    x, y = data()
    values = {"Beta": y.sigmoid(), "NegativeBinomial": y.exp().round(), "GammaPoisson": y.exp().round()}
    positive_ones = {"LogNormal": y.exp(), "Gamma": y.exp()}
    y = (values | positive_ones).get(name, y)
    assert found(observed_as(FAMILIES[name]), x, y) == ["std", "dispersion"]


def test_degrees_of_freedom_and_a_scale_through_a_function():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), pyro.param("log_std", torch.tensor(0.1)).exp()).to_event(1))
        df, log_noise = positive("df", 4.0), pyro.param("log_noise", torch.tensor(-0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(df, x @ w, log_noise.exp()), obs=y)

    assert found(model, *data()) == ["log_std", "df", "log_noise"]


def test_what_enters_location_and_dispersion_is_none():
    """A power that scales the noise and the signal alike."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        size = positive("size", 1.3)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(size * (x @ w), size), obs=y)

    x, y = data()
    w = {"w": torch.ones(3)}
    options = {"polish": False, "on_not_a_mode": "ignore", "progress": False}
    assert not pl.fit_laplace(model, (x, y), w, **options).hyperparameters


def test_a_variance_networks_weights_are_none():
    class Variance(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.net = pyro.nn.PyroModule[nn.Linear](3, 1)

        def forward(self, x, y=None):
            w = pyro.sample("w", dist.Normal(torch.zeros(3), positive("std", 1.0)).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(x @ w, self.net(x)[:, 0].exp()), obs=y)

    torch.manual_seed(0)
    assert found(Variance(), *data()) == ["std"]

    def by_hand(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), positive("std", 1.0)).to_event(1))
        hidden = torch.tanh(x @ pyro.param("first", torch.randn(3, 2))) @ pyro.param("second", torch.randn(2, 1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, hidden[:, 0].exp()), obs=y)

    assert found(by_hand, *data()) == ["std"]


def test_trained_weights_are_none():
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    noise = pl.nn.Regression(pl.nn.learned(0.5))
    model = pl.bayesianize(net, pl.nn.Isotropic(pl.nn.learned(1.0)), noise, parameters="2.*", rest="trained")
    assert found(model, *data()) == ["2.weight.scale", "2.bias.scale", "noise"]


def test_those_of_held_sites_are_none():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    model = pl.bayesianize(net, pl.nn.Isotropic(pl.nn.learned(1.0)), pl.nn.Regression(pl.nn.learned(0.5)))
    last = ["2.weight.scale", "2.bias.scale", "noise"]
    assert found(model, *data(), subset="last_layer") == last
    assert found(model, *data(), subset="2.bias") == last[1:]
    mask = {"0.weight": torch.tensor([[True, False, False], [False, False, False]])}
    assert found(model, *data(), subset=pl.Subnetwork(mask=mask)) == ["0.weight.scale", "noise"]
    x, y = data()
    model(x, y + 1.0)
    before, point = store_values(), {name: value.detach() for name, value in net.named_parameters()}
    options = {"subset": "last_layer", "structure": "diag", "refit": False, "on_not_a_mode": "ignore"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.LaplaceWarning)  # a scale may run to its bound
        guide = pl.maximize_evidence(model, (x, y + 1.0), point, **options, progress=False)
    assert list(guide.hyperparameters) == last
    assert list(guide.path.values) == last
    after = store_values()
    assert all(torch.equal(after[name], before[name]) for name in ("0.weight.scale", "0.bias.scale"))
    assert not torch.equal(after["2.weight.scale"], before["2.weight.scale"])


def test_a_shared_scale_is_one_of_the_sites_that_are_random():
    """Of a last layer the evidence says what its own weights do to the shared scale."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1, bias=False))
    model = pl.bayesianize(net, pl.nn.Isotropic(pl.nn.learned(1.0, name="std")), pl.nn.Regression(0.5))
    x, y = data()
    point = {name: value.detach() for name, value in net.named_parameters()}
    options = {"subset": "last_layer", "on_not_a_mode": "ignore", "progress": False}
    guide = pl.maximize_evidence(model, (x, y), point, refit=False, **options)
    assert list(guide.hyperparameters) == ["std"]
    held = guide.median()
    h = torch.tanh(x @ held["0.weight"].T + held["0.bias"])
    prec = h.T @ h / 0.25 + torch.eye(2) / guide.hyperparameters["std"] ** 2
    w = held["2.weight"][0]
    by_hand = (
        dist.Normal(h @ w, 0.5).log_prob(y).sum()
        + dist.Normal(0.0, guide.hyperparameters["std"]).log_prob(w).sum()
        + torch.tensor(2 * torch.pi).log()
        - torch.logdet(prec) / 2
    )
    assert guide.log_evidence == pytest.approx(by_hand.item(), abs=1e-8)


def test_a_hyperprior_and_its_param():
    """A scale that is latent is no hyperparameter; the param of its own prior is."""

    def model(x, y=None):
        tau = pyro.sample("tau", dist.HalfNormal(positive("size", 1.0)))
        raw = pyro.sample("raw", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ (raw * tau), 0.5), obs=y)

    assert found(model, *data()) == ["size"]
    assert found(model, *data(), subset="raw") == []


def test_a_factor():
    """One outside plates is part of the prior; one inside says nothing of noise."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("pull", -positive("strength", 1.0) * w.sum() ** 2)
        with pyro.plate("data", len(x)):
            pyro.factor("y", -((y - x @ w) ** 2) * positive("weight", 2.0))

    assert found(model, *data()) == ["strength"]


# --- names and globs ----------------------------------------------------------------------------------------


def layered(x: Tensor, y: Tensor | None = None) -> None:
    a = pyro.sample("a", dist.Normal(torch.zeros(3), positive("std_a", 1.0)).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, positive("std_b", 1.0)))
    with pyro.plate("data", len(x)):
        loc = x @ a + b + pyro.param("shift", torch.tensor(0.1))
        pyro.sample("y", dist.Normal(loc, positive("noise", 0.6)), obs=y)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("auto", ["std_a", "std_b", "noise"]),
        ("std_*", ["std_a", "std_b"]),
        ("noise", ["noise"]),
        (["noise", "std_a"], ["std_a", "noise"]),
        (("std_?", "std_a"), ["std_a", "std_b"]),
        ("shift", ["shift"]),
        (["*"], ["std_a", "std_b", "shift", "noise"]),
    ],
)
def test_names(names, expected):
    x, y = data()
    layered(x, y)
    guide = pl.fit_laplace(layered, (x, y), {"a": torch.zeros(3), "b": torch.tensor(0.0)}, progress=False)
    own = pl.log_evidence(layered, guide, (x, y), hyperparameters=names, progress=False)
    assert list(own.hyperparameters) == expected
    assert own.value.item() == pytest.approx(guide.log_evidence, rel=1e-12)
    own.value.backward()
    graded = [name for name in store_values() if pyro.param(name).unconstrained().grad is not None]
    assert sorted(graded) == sorted(expected)


def test_a_named_location():
    """What "auto" leaves out may be named: the gradient is that of differences."""
    x, y = data()
    layered(x, y)
    guide = pl.fit_laplace(layered, (x, y), {"a": torch.zeros(3), "b": torch.tensor(0.0)}, progress=False)
    own = pl.log_evidence(layered, guide, (x, y), hyperparameters="shift", progress=False)
    own.value.backward()
    residual = y - x @ guide.median()["a"] - guide.median()["b"] - 0.1
    expected = residual.sum() / 0.6**2
    assert pyro.param("shift").unconstrained().grad.item() == pytest.approx(expected.item(), rel=1e-5)


# --- single coordinates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["mask", "magnitude", "variance"])
def test_a_subnetwork(by):
    """It keeps its coordinates, and the prior is that of these alone."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), positive("std", 1.0)).to_event(1))
        v = pyro.sample("v", dist.Normal(torch.zeros(2), positive("other", 0.7)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, :3] @ w + x[:, 3:] @ v, 0.5), obs=y)

    x, y = data(inputs=5)
    mask = {"w": torch.tensor([True, False, True]), "v": torch.tensor([False, True])}
    subset = pl.Subnetwork(mask=mask) if by == "mask" else pl.Subnetwork(size=3, by=by)
    start = pl.fit_laplace(model, (x, y), subset=subset, progress=False)
    options = {"subset": subset, "refit": False, "on_not_a_mode": "ignore", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.LaplaceWarning)  # one that runs to its bound, of a single coordinate
        guide = pl.maximize_evidence(model, (x, y), start, **options)
    assert torch.equal(guide.index, start.index)
    assert torch.equal(guide.theta, start.theta)
    stds = torch.cat([guide.hyperparameters.get("std", torch.tensor(1.0)).expand(3),
                      guide.hyperparameters.get("other", torch.tensor(0.7)).expand(2)])[guide.index]  # fmt: skip
    prec = (x.T @ x / 0.25)[guide.index][:, guide.index] + torch.diag(stds**-2)
    by_hand = (
        dist.Normal(x @ guide.theta, 0.5).log_prob(y).sum()
        + dist.Normal(0.0, stds).log_prob(guide.loc).sum()
        + 1.5 * torch.tensor(2 * torch.pi).log()
        - torch.logdet(prec) / 2
    )
    assert guide.log_evidence == pytest.approx(by_hand.item(), abs=1e-7)
    own = pl.log_evidence(model, guide, (x, y), progress=False)
    assert own.value.item() == pytest.approx(by_hand.item(), abs=1e-7)
    assert own.num_params == 3


# --- a posterior is used at its own values ----------------------------------------------------------------------


def program(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Its predictions depend on the noise, and on the prior's mean where no datum speaks."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), positive("std", 1.0)).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, positive("noise", 1.0)), obs=y)


def linearized(guide: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    predicted = pl.LinearizedPredictive(program, guide)(x)["y"]
    return [predicted.mean, predicted.variance]


def sampled(guide: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    pyro.set_rng_seed(0)
    return [pl.Predictive(program, guide=guide, num_samples=50)(x)["y"]]


def linear_program(guide: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(pl.linearize(program, guide)).get_trace(x)
    return [trace.nodes["y"]["fn"].scale.expand(len(x)), trace.nodes["w"]["fn"].base_dist.scale]


def as_tree(guide: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    pyro.set_rng_seed(0)
    tree = pl.to_datatree(program, guide, (x, y), num_samples=20)
    return [torch.from_numpy(tree[group][name].values.copy()) for group, name in
            (("log_likelihood", "y"), ("posterior_predictive", "y"))]  # fmt: skip


def compared(guide: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    pyro.set_rng_seed(0)
    table = pl.compare(program, {"laplace": guide}, (x, y), num_samples=30)
    numbers = table.select_dtypes("number").drop(columns=[c for c in table.columns if "sec" in c], errors="ignore")
    return [torch.from_numpy(numbers.dropna(axis="columns").to_numpy(dtype="float64").copy())]


def updated(guide: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    new = pl.update(guide, (x[:5], y[:5]), on_not_a_mode="ignore", progress=False)
    assert new.hyperparameters.keys() == guide.hyperparameters.keys()
    assert all(torch.equal(new.hyperparameters[name], value) for name, value in guide.hyperparameters.items())
    return [new.precision.to_dense(), new.theta, torch.tensor(new.log_evidence)]


USES = [linearized, sampled, linear_program, as_tree, compared, updated]


@functools.cache
def made(keep: bool) -> Any:
    return pl.maximize_evidence(program, data(), keep=keep, progress=False)


def posterior(keep: bool = True) -> Any:
    """A posterior that nobody has been told of, and a store that holds its values."""
    guide = copy.deepcopy(made(keep))
    program(data()[0])
    put(**guide.hyperparameters)
    return guide


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_used_at_its_own_values_without_keep(use):
    """The store may hold others all the time: that is what was asked for, and nothing is said of it."""
    (x, y), guide = data(), posterior(keep=False)
    expected = use(guide, x, y)
    put(std=3.0, noise=0.05)
    before = store_values()
    assert_close(use(guide, x, y), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())
    pyro.clear_param_store()
    assert_close(use(guide, x, y), expected, rtol=1e-12, atol=1e-12)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_used_at_its_own_values_when_the_store_has_changed(use):
    """Of that it is said once."""
    (x, y), guide = data(), posterior()
    expected = use(guide, x, y)
    put(std=3.0, noise=0.05)
    before = store_values()
    with pytest.warns(pl.LaplaceWarning, match=r"\['std', 'noise'\].*guide.hyperparameters") as told:
        found = use(guide, x, y)
    assert len(told) == 1
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert_close(use(guide, x, y), expected, rtol=1e-12, atol=1e-12)  # in silence
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


def test_one_posterior_is_told_of_once_however_it_is_used():
    (x, y), guide = data(), posterior()
    put(noise=0.05)
    with pytest.warns(pl.LaplaceWarning, match=r"\['noise'\]"):
        linearized(guide, x, y)
    for use in USES:
        use(guide, x, y)


def test_log_evidence_is_at_the_stores_values():
    """It is the one function that asks the store; of a posterior without keep it asks the guide."""
    batch, kept, lost = data(), posterior(), posterior(keep=False)
    put(noise=2.0)
    assert pl.log_evidence(program, kept, batch, progress=False).hyperparameters["noise"] == 2.0
    own = pl.log_evidence(program, lost, batch, progress=False)
    assert own.value.item() == pytest.approx(lost.log_evidence, rel=1e-12)
    assert torch.equal(own.hyperparameters["noise"], lost.hyperparameters["noise"])
    pyro.clear_param_store()
    for guide in (kept, lost):  # where nothing holds them, they are the guide's
        own = pl.log_evidence(program, guide, batch, progress=False)
        assert own.value.item() == pytest.approx(guide.log_evidence, rel=1e-12)
    assert not list(pyro.get_param_store().keys())


def test_a_guide_from_a_file_knows_its_values(tmp_path):
    (x, y), guide = data(), posterior()
    expected = linearized(guide, x, y)
    torch.save(guide, tmp_path / "guide.pt")
    put(std=3.0, noise=0.05)
    loaded = torch.load(tmp_path / "guide.pt", weights_only=False)
    with pytest.warns(pl.LaplaceWarning, match="guide.hyperparameters"):
        found = linearized(loaded, x, y)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert loaded.evidence_path == guide.evidence_path
