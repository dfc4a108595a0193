"""`pl.Predictive`: the results of `pyro.infer.Predictive`, their distribution, and nothing of the user's changed."""

import warnings

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from oracles.predictions import NUM, assert_alike, assert_same, both, snapshot
from programs.zoo import CANONICAL, OTHERS, Case, beta_bernoulli, generator, linear, normal, pyro_module
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_laplace as pl


def plated(x, y=None):
    """Plates in plates, event dims, and everything that a program may hold beside latent and observed sites."""
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 0.1).to_event(1))
    with pyro.plate("groups", 3):
        loc = pyro.sample("loc", normal(1.0, 2))
        with pyro.plate("subgroups", 4):
            shift = pyro.sample("shift", dist.Normal(loc.sum(-1), 1.0))
    pyro.deterministic("total", shift.sum())
    pyro.deterministic("weights", scale / scale.sum(), event_dim=1)
    pyro.factor("penalty", -shift.pow(2).sum())
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", x @ scale + loc.sum())
        return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def subsampled(x, y=None):
    w = pyro.sample("w", normal(1.0, x.shape[-1]))
    with pyro.plate("data", len(x), subsample_size=4) as index:
        local = pyro.sample("local", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(x[index] @ w + local, 0.1), obs=None if y is None else y[index])


def discrete(x, y=None):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=weights))
        return pyro.sample("y", dist.Normal(torch.tensor([-1.0, 0.0, 1.0])[z], 0.1), obs=y)


def case_of(model) -> Case:
    return Case(model, linear().data)


PROGRAMS = [*CANONICAL, *OTHERS]
MORE = [plated, subsampled, discrete]

LOOPED = {"beta_bernoulli", "dirichlet_categorical"}
"""Prior draws of these come from an autograd function of torch's that `vmap` cannot run."""


def cases():
    made = [pytest.param(make, id=make.__name__) for make in PROGRAMS]
    return made + [pytest.param(lambda model=model: case_of(model), id=model.__name__) for model in MORE]


def prior_draws(case: Case, num: int = NUM) -> dict[str, torch.Tensor]:
    """Latent site to draws, without the axes of size one that Pyro's pads them with."""
    traces = [poutine.trace(case.model).get_trace(*case.data) for _ in range(num)]
    names = [name for name in traces[0].stochastic_nodes if name not in ("data", "groups", "subgroups")]
    return {name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in names}


@pytest.fixture
def quietly():
    """Without the warning that a program is run draw by draw."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the (model|guide) is run draw by draw", pl.LaplaceWarning)
        yield


# --- the same keys and shapes as Pyro's ------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", cases())
class TestAlike:
    def test_prior(self, make, request):
        case = make()
        theirs, ours = both(case.model, num_samples=NUM)
        if request.node.callspec.id in LOOPED:
            with pytest.warns(pl.LaplaceWarning, match="the model is run draw by draw"):
                result = ours(*case.inputs)
        else:
            result = ours(*case.inputs)
        assert_alike(theirs(*case.inputs), result)

    @pytest.mark.usefixtures("quietly")
    @pytest.mark.parametrize("return_sites", [(), ("y", "_RETURN"), None], ids=str)
    def test_given_draws(self, make, return_sites):
        case = make()
        draws = prior_draws(case)
        if len(draws) > 1:
            draws.popitem()
        theirs, ours = both(case.model, draws, return_sites=return_sites)
        assert_alike(theirs(*case.inputs), ours(*case.inputs))
        theirs, ours = both(case.model, draws, return_sites=["y"])
        assert_alike(theirs(*case.data), ours(*case.data))

    @pytest.mark.usefixtures("quietly")
    @pytest.mark.parametrize("family", [AutoNormal, AutoDelta, AutoMultivariateNormal])
    def test_guides(self, make, family):
        case = make()
        guide = family(poutine.block(case.model, hide=["z"]))
        guide(*case.data)
        theirs, ours = both(case.model, guide=guide, num_samples=NUM)
        try:
            expected = theirs(*case.inputs)
        except RuntimeError:  # Pyro's pads the draws of a guide with plates, which the program may not bear
            assert case.model in MORE
            assert len(ours(*case.inputs)["y"]) == NUM
        else:
            assert_alike(expected, ours(*case.inputs))


def test_values_are_those_of_pyro_at_the_same_draws():
    case = case_of(plated)
    draws = prior_draws(case)
    names = ["mean", "total", "weights", "shift", "loc"]
    theirs, ours = both(case.model, draws, return_sites=names)
    expected, found = theirs(*case.inputs), ours(*case.inputs)
    for name in names:
        assert torch.allclose(expected[name], found[name], rtol=1e-5, atol=1e-6), name


def test_draws_that_pyro_has_padded():
    """A network under a guide with a plate: Pyro's own fails on it."""
    guide = AutoNormal(PlatedNet())
    x, y = torch.randn(7, 3), torch.randn(7)
    guide(x, y)
    padded = pyro.infer.Predictive(guide, num_samples=NUM)(x)
    assert padded["layer.weight"].shape == (NUM, 1, 1, 3)
    theirs, ours = both(PlatedNet(), guide=guide, num_samples=NUM)
    with pytest.raises(RuntimeError):
        theirs(x)
    assert ours(x)["y"].shape == (NUM, 7)
    found = pl.Predictive(PlatedNet(), {name: value for name, value in padded.items() if name != "y"})(x)
    assert found["y"].shape == (NUM, 7)


class PlatedNet(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = pyro_module(nn.Linear)(3, 1)
        self.layer.weight = PyroSample(normal(1.0, 1, 3))
        self.layer.bias = PyroSample(normal(1.0, 1))

    def forward(self, x, y=None):
        with pyro.plate("groups", 2):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        mean = self.layer(x)[:, 0] + effect.sum()
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def test_arguments_and_results_beside_forward():
    theirs, ours = both(beta_bernoulli().model, {"probs": torch.rand(NUM)})
    assert isinstance(ours, pyro.infer.Predictive)
    assert [value.shape for value in ours.call()] == [value.shape for value in theirs.call()]
    assert ours.get_vectorized_trace().nodes["y"]["value"].shape == (NUM, 12)
    with pytest.warns(DeprecationWarning, match="get_samples"):
        ours.get_samples()


def test_parallel_is_pyros():
    theirs, ours = both(beta_bernoulli().model, num_samples=NUM, parallel=True)
    pyro.set_rng_seed(3)
    expected = theirs()
    pyro.set_rng_seed(3)
    assert torch.equal(ours()["y"], expected["y"])


# --- the same distribution -------------------------------------------------------------------------------------------

MANY = 100_000


def assert_moments(draws: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> None:
    """Mean and covariance within five standard errors of those of a Gaussian."""
    var = cov.diagonal()
    assert torch.all((draws.mean(0) - mean).abs() < 5 * (var / len(draws)).sqrt())
    error = ((var[:, None] * var + cov**2) / len(draws)).sqrt()
    assert torch.all((draws.T.cov() - cov).abs() < 5 * error)


@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("source", ["prior", "laplace", "linearized", "draws", "vi"])
def test_moments_of_a_linear_program(source):
    case = linear()
    x, y = case.data
    x_new = torch.randn(4, 3, generator=generator(7))
    mean, cov = torch.zeros(3), 1.3**2 * torch.eye(3)
    if source != "prior":
        cov = torch.linalg.inv(x.T @ x / 0.7**2 + torch.eye(3) / 1.3**2)
        mean = cov @ x.T @ y / 0.7**2
    model, options = case.model, {"num_samples": MANY}
    if source in ("laplace", "linearized"):
        options["guide"] = pl.fit_laplace(case.model, case.data)
        if source == "linearized":
            model = pl.linearize(case.model, options["guide"])
    elif source == "draws":
        options = {"posterior_samples": {"w": mean + torch.randn(MANY, 3) @ torch.linalg.cholesky(cov).T}}
    elif source == "vi":

        def guide(x, y=None):
            pyro.sample("w", dist.MultivariateNormal(mean, cov))

        options["guide"] = guide
    found = pl.Predictive(model, **options)(x_new)["y"]
    assert_moments(found, x_new @ mean, x_new @ cov @ x_new.T + 0.7**2 * torch.eye(4))


@pytest.mark.statistical
@pytest.mark.usefixtures("quietly")
@pytest.mark.parametrize("chunk_size", [None, 1_000])
def test_latent_sites_of_every_kind_have_the_moments_of_their_distribution(chunk_size):
    """Each filled by torch in another way: in place, out of place, by rejection, by an index."""
    fns = {
        "normal": dist.Normal(1.0, 2.0),
        "multivariate": dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        "low_rank": dist.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2)),
        "uniform": dist.Uniform(0.0, 2.0),
        "exponential": dist.Exponential(2.0),
        "laplace": dist.Laplace(1.0, 1.0),
        "gamma": dist.Gamma(3.0, 2.0),
        "student": dist.StudentT(20.0, 0.0, 1.0),
        "lognormal": dist.LogNormal(0.0, 0.3),
        "poisson": dist.Poisson(3.0),
        "bernoulli": dist.Bernoulli(0.3),
        "binomial": dist.Binomial(10, 0.3),
        "geometric": dist.Geometric(0.4),
        "onehot": dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])),
        "gumbel": dist.Gumbel(0.0, 1.0),
        "weibull": dist.Weibull(1.0, 2.0),
        "beta": dist.Beta(2.0, 3.0),
        "dirichlet": dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    }
    for name, fn in fns.items():
        num = 4_000 if name in ("beta", "dirichlet", "binomial") else 40_000

        def model(fn=fn):
            with pyro.plate("two", 2):
                pyro.sample("z", fn)

        draws = pl.Predictive(model, num_samples=num, chunk_size=chunk_size)()["z"].double()
        assert draws.shape == (num, 2, *fn.event_shape)
        error = (fn.variance / num).sqrt()
        assert torch.all((draws.mean(0) - fn.mean).abs() < 5 * error), name
        assert torch.allclose(draws.var(0), fn.variance.double(), rtol=0.15), name
        one, other = draws.reshape(num, 2, -1)[:, :, 0].T
        correlation = torch.corrcoef(torch.stack([one, other]))
        assert abs(correlation[0, 1]) < 5 / num**0.5, name
        assert len(torch.unique(draws[:, 0], dim=0)) > 1


def test_indices_of_a_subsampling_plate_differ_from_draw_to_draw():
    x = torch.arange(30.0)

    def model():
        with pyro.plate("data", 30, subsample_size=3) as index:
            pyro.deterministic("seen", x[index])

    seen = pl.Predictive(model, num_samples=200)()["seen"]
    assert seen.shape == (200, 3)
    assert all(len(row.unique()) == 3 for row in seen)
    assert len(seen.unique()) == 30


# --- layers with a mind of their own ---------------------------------------------------------------------------------


class Layers(PyroModule):
    """A Bayesian last layer on a network of the given layers."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.features = nn.Sequential(*layers)

    def forward(self, x, y=None):
        w = pyro.sample("w", normal(1.0, 6))
        features = pyro.deterministic("features", self.features(x), event_dim=2)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(features @ w, 0.1), obs=y)


def test_dropout_differs_from_draw_to_draw_in_training_only():
    model = Layers(nn.Linear(3, 6), nn.Dropout(0.5))
    x, draws = torch.randn(8, 3), {"w": torch.randn(NUM, 6)}
    before = snapshot(model)
    features = pl.Predictive(model, draws)(x)["features"].reshape(NUM, 8, 6)
    assert all((features[0] != features[i]).any() for i in range(1, NUM))
    assert 0.3 < (features == 0).float().mean() < 0.7
    assert_same(before, snapshot(model))
    model.eval()
    features = pl.Predictive(model, draws)(x)["features"].reshape(NUM, 8, 6)
    assert all(torch.equal(features[0], other) for other in features)
    assert not model.features[1].training


def test_running_statistics_are_left_alone():
    model = Layers(nn.Linear(3, 6), nn.BatchNorm1d(6))
    x, draws = torch.randn(8, 3), {"w": torch.randn(NUM, 6)}
    model(x)
    before = snapshot(model)
    pl.Predictive(model, draws)(x)
    assert_same(before, snapshot(model))
    pyro.infer.Predictive(model, draws)(x)
    with pytest.raises(AssertionError):
        assert_same(before, snapshot(model))


def test_a_plain_function_has_its_network_left_alone_too():
    network = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))

    def model(x):
        w = pyro.sample("w", normal(1.0, 6))
        return pyro.sample("y", dist.Normal(network(x) @ w, 0.1).to_event(1))

    before = snapshot(network)
    pl.Predictive(model, num_samples=NUM)(torch.randn(8, 3))
    assert_same(before, snapshot(network))


@pytest.mark.parametrize("fails_at", [1, 2, 4], ids=["first run", "vectorised", "loop"])
@pytest.mark.usefixtures("quietly")
def test_nothing_is_changed_by_a_program_that_raises(fails_at, param_mode):
    runs, local = [], param_mode

    class Failing(Layers):
        def forward(self, x, y=None):
            if not local:
                pyro.param("made_on_the_way", torch.ones(2))
            runs.append(len(runs))
            w = super().forward(x, y)
            if len(runs) >= fails_at or (fails_at == 4 and w.sum() > 1e9):
                raise ValueError("midway")
            return w

    model = Failing(nn.Linear(3, 6), nn.BatchNorm1d(6))
    x = torch.randn(8, 3)
    pyro.param("mine", torch.ones(2))
    before, flags = snapshot(model), pyro.settings.get()
    with pytest.raises(ValueError, match="midway"):
        pl.Predictive(model, num_samples=NUM)(x)
    assert_same(before, snapshot(model))
    assert pyro.settings.get() == flags


def test_the_graph_of_a_loss_outlives_a_prediction():
    model = Layers(nn.Linear(3, 6), nn.BatchNorm1d(6)).eval()
    x = torch.randn(8, 3)
    loss = model.features(x).sum()
    pl.Predictive(model, num_samples=NUM)(x)
    loss.backward()
