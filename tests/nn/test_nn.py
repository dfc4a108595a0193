"""`bayesianize`: a network and priors are the program one would write by hand, and start at the network's weights."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.zoo import generator
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import constraints

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def data(num_obs=30):
    g = generator()
    x = torch.randn(num_obs, 3, generator=g)
    return x, torch.sin(x[:, 0]) + 0.1 * torch.randn(num_obs, generator=g)


def log_joint(model, values, *args):
    return poutine.trace(poutine.condition(model, data=values)).get_trace(*args).log_prob_sum()


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


class Tied(nn.Module):
    """A table that is also the last layer, and parameters in a list and a dictionary."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.shifts = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(2)])
        self.gains = nn.ParameterDict({"g": nn.Parameter(torch.ones(4))})

    def forward(self, x):
        return self.out(torch.tanh(self.embed(x) * self.gains["g"] + self.shifts[0] + self.shifts[1]))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def conv() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 3)
    )
    net(torch.randn(20, 1, 4, 4))  # running statistics of its own
    return net


NETWORKS = {
    "mlp": (mlp, lambda: torch.randn(20, 3)),
    "tied": (Tied, lambda: torch.randint(7, (20,))),
    "conv": (conv, lambda: torch.randn(20, 1, 4, 4)),
    "attention": (Attention, lambda: torch.randn(20, 5, 4)),
    "recurrent": (Recurrent, lambda: torch.randn(20, 5, 3)),
}


# --- the same program as by hand ------------------------------------------------------------------


def test_log_density_is_that_of_the_program_written_by_hand():
    net, (x, y) = mlp(), data()
    model = pl.bayesianize(net, pl.nn.Isotropic(0.7), pl.nn.Regression(noise=dist.HalfNormal(1.0)))

    def by_hand(x, y=None):
        w = {
            name: pyro.sample(name, dist.Normal(0.0, 0.7).expand(p.shape).to_event())
            for name, p in weights(net).items()
        }
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        f = torch.tanh(x @ w["0.weight"].T + w["0.bias"]) @ w["2.weight"].T + w["2.bias"]
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f[:, 0], noise), obs=y)

    values = {name: torch.randn(p.shape) for name, p in weights(net).items()} | {"noise": torch.tensor(0.4)}
    torch.testing.assert_close(log_joint(model, values, x, y), log_joint(by_hand, values, x, y), rtol=1e-12, atol=0)


def test_laplace_of_linear_regression_is_the_closed_form():
    x, y = data()
    model = pl.bayesianize(nn.Linear(3, 1), pl.nn.Isotropic(1.3), pl.nn.Regression(noise=0.7))
    guide = pl.fit_laplace(model, (x, y), progress=False)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    precision = design.T @ design / 0.7**2 + torch.eye(4) / 1.3**2
    covariance = torch.eye(len(x)) * 0.7**2 + 1.3**2 * design @ design.T
    evidence = dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(y)
    torch.testing.assert_close(guide.precision.to_dense(), precision, rtol=1e-10, atol=1e-10)
    mean = torch.cat([guide.median()["weight"][0], guide.median()["bias"]])
    torch.testing.assert_close(mean, torch.linalg.solve(precision, design.T @ y / 0.7**2), rtol=1e-8, atol=1e-10)
    assert guide.log_evidence == pytest.approx(evidence.item(), abs=1e-8)


@pytest.mark.parametrize("kind", NETWORKS)
def test_at_its_weights_the_program_gives_the_networks_output(kind):
    make, inputs = NETWORKS[kind]
    net, x = make().eval(), inputs()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0))
    with torch.no_grad():
        output, expected = poutine.condition(model, data=weights(net))(x), net(x)
        drawn = model(x)
    if kind == "attention":  # whose fused path, which eval mode takes, sums in another order
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(output, expected)
    assert not torch.allclose(drawn, expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_sites_are_the_named_parameters_but_for_normalisation(kind):
    make, inputs = NETWORKS[kind]
    net = make()
    trace = poutine.trace(pl.bayesianize(net, pl.nn.Isotropic(1.0))).get_trace(inputs())
    expected = [
        name for name, _ in net.named_parameters() if "norm" not in name and not (kind == "conv" and name[0] == "1")
    ]
    assert trace.stochastic_nodes == expected


# --- the start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [pl.nn.Isotropic(1.0), pl.nn.ARD(dist.HalfNormal(1.0))], ids=["plain", "non_centred"])
def test_the_search_starts_at_the_networks_weights(prior):
    net, x = mlp(), data()
    model = pl.bayesianize(net, prior, pl.nn.Regression(noise=0.1))
    guide = pl.fit_map(model, x, num_steps=1, learning_rate=1e-12, optim=pyro.optim.SGD({"lr": 0.0}), progress=False)
    program = poutine.replay(model, poutine.trace(guide).get_trace(*x))
    nodes = poutine.trace(program).get_trace(*x).nodes
    # Newton's method goes on from there where the program is small, so the start is read off the trace instead
    start = (
        poutine.trace(pyro.infer.autoguide.initialization.InitMessenger(pl.init_to_start)(model)).get_trace(*x).nodes
    )
    for name, weight in weights(net).items():
        torch.testing.assert_close(start[name]["value"], weight, rtol=1e-14, atol=1e-14)
        assert nodes[name]["value"].shape == weight.shape


def test_fit_map_starts_at_the_loss_of_the_trained_network():
    net, batch = nn.Sequential(nn.Linear(3, 60), nn.Tanh(), nn.Linear(60, 1)), data()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Regression(noise=0.1))
    guide = pl.fit_map(model, batch, num_steps=1, optim=pyro.optim.SGD({"lr": 0.0}), progress=False)
    for name, weight in weights(net).items():
        assert torch.equal(guide.median()[name], weight)
    trained = log_joint(model, guide.median(), *batch)
    torch.testing.assert_close(trained, log_joint(model, weights(net), *batch), rtol=0, atol=0)


def test_a_site_of_any_program_says_where_it_starts():
    def model(y=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0), infer={"start": torch.tensor(3.0)})
        with pyro.plate("data", 5):
            return pyro.sample("y", dist.Cauchy(loc, 0.1), obs=y)

    node = {"name": "loc", "fn": dist.Normal(0.0, 1.0).expand([2]), "infer": {"start": lambda: 4.0}}
    assert torch.equal(pl.init_to_start(node), torch.tensor([4.0, 4.0]))
    # two modes: the start decides which one is found
    guide = pl.fit_map(model, (torch.tensor([-3.0, -3.0, 3.0, 3.0, 3.1]),), progress=False)
    assert guide.median()["loc"] == pytest.approx(3.0, abs=0.1)
    with pytest.raises(pl.InvalidOption, match=r"'loc' has shape .2., and its infer.* of shape .3."):
        pl.init_to_start(node | {"infer": {"start": torch.ones(3)}})


# --- what is left as it was -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_given_is_left_as_it_was(kind):
    make, inputs = NETWORKS[kind]
    net = make().train()
    before, classes = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    rng = torch.get_rng_state()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(), rest="trained")
    assert torch.equal(rng, torch.get_rng_state())
    assert not pyro.get_param_store().keys()
    if kind not in ("mlp", "recurrent"):
        batch = inputs(), torch.randint(3, (20,))
        guide = pl.fit_map(model, batch, num_steps=3, progress=False)
        pl.fit_laplace(model, batch, guide, structure="diag", on_not_a_mode="ignore")
    assert [type(m) for m in net.modules()] == classes
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    shared = {t.data_ptr() for t in net.state_dict().values()} & {t.data_ptr() for t in model.state_dict().values()}
    assert not shared
    assert not any(module.training for module in model.modules())


def test_copies_and_pickles_are_the_same_program():
    net, batch = mlp(), data()
    model = pl.bayesianize(net, pl.nn.FanIn(), pl.nn.Regression(noise=0.1))
    guide = pl.fit_laplace(model, batch, progress=False, on_not_a_mode="ignore")
    expected = log_joint(model, weights(net), *batch)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to("cpu")):
        torch.testing.assert_close(log_joint(again, weights(net), *batch), expected, rtol=0, atol=0)
    assert Predictive(copy.deepcopy(model), guide=guide, num_samples=3)(batch[0])["y"].shape == (3, 30)


def test_the_program_follows_its_network_to_another_dtype():
    model = pl.bayesianize(mlp(), pl.nn.Horseshoe(), pl.nn.Regression(noise=dist.HalfNormal(1.0))).float()
    nodes = poutine.trace(model).get_trace(data()[0].float()).nodes.values()
    assert {node["value"].dtype for node in nodes if node["type"] == "sample" and node["name"] != "data"} == {
        torch.float32
    }


# --- which parameters -------------------------------------------------------------------------------


def test_a_subset_is_random_and_the_rest_fixed():
    net, batch = mlp(), data()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Regression(noise=0.1), parameters="2.*")
    guide = pl.fit_laplace(model, batch, progress=False)
    assert list(guide.layout) == ["2.weight", "2.bias"]
    hidden = torch.cat([torch.tanh(net[0](batch[0])), torch.ones(30, 1)], 1).detach()
    precision = hidden.T @ hidden / 0.1**2 + torch.eye(5)
    torch.testing.assert_close(guide.precision.to_dense(), precision, rtol=1e-9, atol=1e-9)
    assert torch.equal(model.module[0].weight, net[0].weight)


def test_the_rest_may_be_trained():
    net, batch = mlp(), data()
    model = pl.bayesianize(
        net, pl.nn.Isotropic(1.0), pl.nn.Regression(noise=0.1), parameters=lambda n: n.startswith("2"), rest="trained"
    )
    pl.fit_map(model, batch, num_steps=50, progress=False)
    assert not torch.equal(model.module[0].weight, net[0].weight)
    assert torch.equal(model.module[2].weight, net[2].weight)


def test_pyro_trains_no_rest_in_its_local_mode(param_mode):
    options = {"parameters": "2.*", "rest": "trained"}
    if param_mode:
        with pytest.raises(pl.UnsupportedProgram, match="module_local_params=True"):
            pl.bayesianize(mlp(), pl.nn.Isotropic(1.0), **options)
    model = pl.bayesianize(mlp(), pl.nn.Isotropic(1.0), pl.nn.Regression(0.1), parameters="2.*")
    assert pl.fit_laplace(model, data(), progress=False).mode.is_mode


def test_a_mapping_gives_each_layer_its_prior():
    net = conv()
    prior = {"0.bias": None, "0.*": pl.nn.Isotropic(2.0), "*": lambda name, p: dist.Laplace(0.0, 0.5)}
    trace = poutine.trace(pl.bayesianize(net, prior)).get_trace(torch.randn(2, 1, 4, 4))
    assert trace.stochastic_nodes == ["0.weight", "5.weight", "5.bias"]
    assert (trace.nodes["0.weight"]["fn"].base_dist.scale == 2.0).all()
    assert isinstance(trace.nodes["5.bias"]["fn"].base_dist, dist.Laplace)


def test_what_requires_no_gradient_has_a_prior_only_by_name():
    net = mlp()
    net[0].requires_grad_(False)
    assert list(pl.bayesianize(net, pl.nn.Isotropic(1.0)).priors) == ["2.weight", "2.bias"]
    assert list(pl.bayesianize(net, pl.nn.Isotropic(1.0), parameters="0.w*").priors) == ["0.weight"]
    assert pl.bayesianize(net, pl.nn.Isotropic(1.0), parameters="2.*", rest="trained").trained == ()


def test_a_shared_parameter_answers_to_each_of_its_names():
    assert list(pl.bayesianize(Tied(), pl.nn.Isotropic(1.0), parameters="out.weight").priors) == ["embed.weight"]


# --- inside the rest of the package -----------------------------------------------------------------


@pytest.mark.parametrize("options", [{"structure": "kron"}, {"structure": "diag"}, {"subset": "last_layer"}], ids=str)
def test_structures_and_subsets(options):
    net = conv()
    x, y = torch.randn(20, 1, 4, 4), torch.randint(3, (20,))
    model = pl.bayesianize(net, pl.nn.Isotropic(0.5), pl.nn.Classification())
    guide = pl.fit_laplace(model, (x, y), progress=False, on_not_a_mode="ignore", **options)
    assert ("0.weight" in guide.layout) == ("subset" not in options)
    assert Predictive(pl.linearize(model, guide), guide=guide, num_samples=4)(x)["y"].shape == (4, 20)


def test_autonormal_and_nuts():
    batch = data(15)
    model = pl.bayesianize(nn.Linear(3, 1), pl.nn.Isotropic(1.0), pl.nn.Regression(noise=0.3))
    guide = pl.fit_svi(model, batch, AutoNormal(model, init_loc_fn=pl.init_to_start), num_steps=20, progress=False)
    assert guide.median()["weight"].shape == (1, 3)
    draws = pl.fit_nuts(model, batch, num_samples=10, warmup_steps=10, progress=False).get_samples()
    assert draws["weight"].shape == (10, 1, 3)


def test_the_network_inside_a_program_of_ones_own():
    left = pl.bayesianize(mlp(), pl.nn.Isotropic(1.0), name="left")
    right = pl.bayesianize(mlp(), pl.nn.FanIn(), name="right")

    class Difference(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = pl.bayesianize(mlp(), pl.nn.Isotropic(1.0))

        def forward(self, x, y=None):
            f = self.net(x) - self.net(-x)  # one draw for both
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(f[:, 0], 0.2), obs=y)

    def two(x, y=None):
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(left(x)[:, 0], right(x)[:, 0].exp()), obs=y)

    nested = pl.fit_laplace(Difference(), data(), progress=False, structure="kron", on_not_a_mode="ignore")
    assert list(nested.layout) == [f"net.{name}" for name in weights(mlp())]
    with pytest.raises(pl.UnsupportedProgram, match=r"'left.0.weight' has shape .30, 4, 3., .*move the call out"):
        pl.fit_map(two, data(), progress=False)


# --- likelihoods ------------------------------------------------------------------------------------

LIKELIHOODS = {
    "regression": (pl.nn.Regression(0.3), 1, lambda f: dist.Normal(f[:, 0], 0.3), torch.randn),
    "regression_2": (
        pl.nn.Regression(torch.tensor([0.3, 0.5], dtype=torch.float64)), 2,
        lambda f: dist.Normal(f, torch.tensor([0.3, 0.5], dtype=torch.float64)).to_event(1), torch.randn,
    ),
    "heteroscedastic": (
        pl.nn.HeteroscedasticRegression(), 2, lambda f: dist.Normal(f[:, 0], f[:, 1].exp()), torch.randn,
    ),
    "classification": (
        pl.nn.Classification(), 3, lambda f: dist.Categorical(logits=f), lambda *s: torch.randint(3, s),
    ),
    "binary": (
        pl.nn.BinaryClassification(), 1, lambda f: dist.Bernoulli(logits=f[:, 0]), lambda *s: torch.randint(2, s),
    ),
    "counts": (pl.nn.Counts(), 1, lambda f: dist.Poisson(f[:, 0].exp()), lambda *s: torch.randint(5, s)),
    "own": (
        lambda f: dist.StudentT(4.0, f[:, 0], 0.2), 1, lambda f: dist.StudentT(4.0, f[:, 0], 0.2), torch.randn,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_likelihoods(kind):
    likelihood, outputs, by_hand, draw = LIKELIHOODS[kind]
    net, x = nn.Linear(3, outputs), torch.randn(12, 3)
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), likelihood)
    y = draw(*by_hand(net(x)).shape())
    values = weights(net)
    node = poutine.trace(poutine.condition(model, data=values)).get_trace(x, y).nodes["y"]
    float_y = y if kind == "classification" else y.to(x)
    torch.testing.assert_close(
        node["fn"].log_prob(node["value"]), by_hand(net(x)).log_prob(float_y).detach(), rtol=1e-13, atol=0
    )
    assert [frame.name for frame in node["cond_indep_stack"]] == ["data"]
    guide = pl.fit_laplace(model, (x, y), progress=False)
    assert Predictive(model, guide=guide, num_samples=4)(x)["y"].shape == (4, *y.shape)
    if y.dim() == 1:  # a column is taken for a vector
        torch.testing.assert_close(log_joint(model, values, x, y[:, None]), log_joint(model, values, x, y))


def test_counts_have_exposures_and_offsets():
    net, x, y = nn.Linear(3, 1), torch.randn(12, 3), torch.randint(5, (12,)).double()
    exposure = torch.rand(12) + 0.5
    model, values = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Counts()), weights(net)
    expected = dist.Poisson(exposure * net(x)[:, 0].exp()).log_prob(y).detach()
    for args, kwargs in (((exposure,), {}), ((), {"exposure": exposure}), ((), {"offset": exposure.log()})):
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x, y, *args, **kwargs)
        torch.testing.assert_close(trace.nodes["y"]["fn"].log_prob(y), expected, rtol=1e-12, atol=1e-12)
    guide = pl.fit_laplace(model, {"x": x, "y": y, "exposure": exposure}, progress=False)
    assert guide.mode.is_mode


def test_noise_may_be_a_param():
    net, batch = mlp(), data()
    noise = lambda: pyro.param("noise", torch.tensor(0.3), constraint=constraints.positive)  # noqa: E731
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Regression(noise))
    fixed = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Regression(0.3))
    values = weights(net)
    torch.testing.assert_close(log_joint(model, values, *batch), log_joint(fixed, values, *batch), rtol=1e-14, atol=0)
