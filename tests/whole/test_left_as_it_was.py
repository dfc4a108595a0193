"""What a function leaves behind: the modules of a program, and the param store, are as they were."""

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

import pyro_laplace as pl
from pyro_laplace.program.module_state import modules_kept

X = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
DATA = (X, X[:, 0])


def snapshot(module):
    return copy.deepcopy(module.state_dict()), [each.training for each in module.modules()]


def assert_same(module, before):
    state, modes = before
    assert module.state_dict().keys() == state.keys()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)
    assert [each.training for each in module.modules()] == modes


def layers(*more):
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), *more, nn.Linear(4, 1))


def weighed(of, x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(of(x) @ w, 0.3), obs=y)


class Noisy(PyroModule):
    """A regression with params: its noise, and where Pyro's SVI takes it, a shift."""

    noise: Any
    shift: Any

    def __init__(self, shift):
        super().__init__()
        self.noise, self.shift = PyroParam(torch.tensor(0.5), dist.constraints.positive), shift

    def forward(self, x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w + self.shift, self.noise), obs=y)


class Normalised(PyroModule):
    """A head with a prior over normalised features; a subclass says what else a run does."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))

    def forward(self, x, y=None):
        return weighed(self.features, x, y)


def converted(*more):
    likelihood = pl.nn.Regression(noise=0.3)
    program = pl.bayesianize(layers(*more), prior=pl.nn.FanIn(), likelihood=likelihood)
    return program, program, "'module.1.running_mean'"


def module(*_):
    program = Normalised()
    return program, program, "'features.1.running_mean'"


def function(*_):
    features = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    return lambda x, y=None: weighed(features, x, y), features, "'Sequential.1.running_mean'"


def points(model):
    return {name: value[0] for name, value in pl.fit_laplace(model, DATA, progress=False).sample_posterior(1).items()}


def draws(model):
    return pl.fit_laplace(model, DATA, progress=False).sample_posterior(40)


CALLS = {
    "fit_laplace": (lambda model: None, lambda model, _: pl.fit_laplace(model, DATA, progress=False)),
    "fit_laplace at a point": (points, lambda model, point: pl.fit_laplace(model, DATA, point)),
    "fit_laplace at points": (points, lambda model, point: pl.fit_laplace(model, DATA, [point, point])),
    "fit_map": (lambda model: None, lambda model, _: pl.fit_map(model, DATA, progress=False)),
    "fit_svi": (lambda model: None, lambda model, _: pl.fit_svi(model, DATA, AutoNormal(model), progress=False)),
    "fit_nuts": (lambda model: None, lambda model, _: pl.fit_nuts(model, DATA, num_samples=2, progress=False)),
    "update": (lambda model: pl.fit_laplace(model, DATA, progress=False), lambda model, guide: pl.update(guide, DATA)),
    "of_modes": (points, lambda model, point: pl.LaplaceMixture.of_modes(model, DATA, [point])),
    "to_datatree": (draws, lambda model, posterior: pl.to_datatree(model, posterior, DATA)),
    "to_datatree of a guide": (
        lambda model: pl.fit_laplace(model, DATA, progress=False),
        lambda model, guide: pl.to_datatree(model, guide, DATA),
    ),
    "compare": (draws, lambda model, posterior: pl.compare(model, {"draws": posterior}, DATA)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("make", [converted, module, function])
@pytest.mark.filterwarnings("ignore:.*nonlinear")
def test_a_batch_normalisation_in_training_is_refused_and_left_alone(make, call):
    program, owner, name = make()
    owner.eval()
    prepare, run = CALLS[call]
    given = prepare(program)
    owner.train()
    before = snapshot(owner)
    with pytest.raises(
        pl.UnsupportedProgram, match=rf"its own buffers \[{name}.*call \.eval\(\) on its modules"
    ) as refusal:
        run(program, given)
    assert "dropout" not in str(refusal.value)
    assert_same(owner, before)


@pytest.mark.parametrize("make", [converted, module, function])
def test_a_batch_normalisation_in_evaluation_is_left_alone(make):
    program, owner, _ = make()
    owner.eval().requires_grad_(False)
    before = snapshot(owner)
    guide = pl.fit_laplace(program, DATA, progress=False)
    pl.to_datatree(pl.linearize(program, guide), guide, DATA, num_samples=20)
    assert_same(owner, before)


def test_dropout_beside_it_is_mentioned():
    program, _, _ = converted(nn.Dropout(0.5))
    program.train()
    with pytest.raises(pl.UnsupportedProgram, match=r"running_mean.*dropout.*\.eval\(\)"):
        pl.fit_laplace(program, DATA, progress=False)
    for each in program.modules():
        each.train(isinstance(each, nn.Dropout))
    with pytest.raises(pl.UnsupportedProgram, match="something random is not a latent site"):
        pl.fit_laplace(program, DATA, progress=False)


def test_the_names_of_many_buffers_are_cut_short():
    network = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(9)), nn.Linear(2, 1))
    program = pl.bayesianize(network, prior=pl.nn.FanIn(), likelihood=pl.nn.Regression(noise=0.3)).train()
    with pytest.raises(pl.UnsupportedProgram, match=r"'module\.0\.num_batches_tracked', \.\.\. \(27 in all\)"):
        pl.fit_map(program, DATA, progress=False)


@pytest.mark.parametrize("call", [name for name in CALLS if name not in ("update", "to_datatree of a guide")])
def test_a_program_that_raises_is_left_alone(call):
    class Failing(Normalised):
        fails = False

        def forward(self, x, y=None):
            self.features(x)
            if self.fails:
                self.features[0].train()
                raise RuntimeError("midway")
            return super().forward(x, y)

    program = Failing().eval()
    prepare, run = CALLS[call]
    given = prepare(program)
    program.features[1].train()
    program.fails = True
    before = snapshot(program)
    with pytest.raises(RuntimeError, match="midway"):
        run(program, given)
    assert_same(program, before)


@pytest.mark.parametrize("make", [converted, module, function])
def test_a_linearised_batch_normalisation_in_training_is_refused(make):
    program, owner, name = make()
    guide = pl.fit_laplace(program, DATA, progress=False) if make is converted else None
    if guide is None:
        owner.eval()
        guide = pl.fit_laplace(program, DATA, progress=False)
    linearized = pl.linearize(program, guide)
    owner.train()
    before = snapshot(owner)
    for call in (linearized, pl.Predictive(linearized, guide=guide, num_samples=3)):
        with pytest.raises(pl.UnsupportedProgram, match=rf"{name}.*call \.eval\(\) on its modules"):
            call(X)
        assert_same(owner, before)


def test_a_linearised_program_that_writes_in_place_is_refused():
    last = torch.zeros(50)

    def model(x, y=None):
        def mean(x, w):
            last.copy_(x @ w)
            return x @ w

        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        f = mean(x, w) if written else x @ w
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, 0.3), obs=y)

    written = False
    linearized = pl.linearize(model, pl.fit_laplace(model, DATA, progress=False))
    written = True
    with pytest.raises(pl.UnsupportedProgram, match=r"in place.*call \.eval\(\) on its modules"):
        linearized(X)


def test_a_guide_with_a_batch_normalisation_is_left_alone():
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 4))

        def forward(self, x, y=None):
            pyro.sample("w", dist.Normal(self.encoder(x).mean(0), 0.1).to_event(1))

    guide = Guide()
    program = Normalised().eval()
    before = snapshot(guide)
    pl.to_datatree(program, guide, DATA, num_samples=20)
    pl.compare(program, {"amortised": guide}, DATA, num_samples=40)
    assert_same(guide, before)


@pytest.mark.parametrize(
    "buffer",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([True, False]),
        torch.eye(2).to_sparse(),
        torch.tensor([1j, 2.0]),
        None,
    ],
    ids=["nan", "bool", "sparse", "complex", "none"],
)
def test_a_buffer_that_does_not_change_is_no_matter(buffer):
    program = Normalised().eval()
    program.register_buffer("constant", buffer)
    pl.fit_laplace(program, DATA, progress=False)
    assert program.constant is buffer


def test_what_a_program_puts_in_a_buffers_place_is_taken_out():
    class Caching(Normalised):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", None)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x, y=None):
            self.seen, self.count = x.sum(0), self.count.double()
            return super().forward(x, y)

    program = Caching().eval()
    count = program.count
    with pytest.raises(pl.UnsupportedProgram, match=r"buffers \['seen', 'count'\]"):
        pl.fit_laplace(program, DATA, progress=False)
    assert program.seen is None
    assert program.count is count


def test_modules_that_are_only_reached_are_kept():
    net = layers()
    before = snapshot(net)
    with modules_kept() as kept:
        net(X)
        net[0].eval()
        assert kept.changed() == [
            f"Sequential.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
        ]
    assert_same(net, before)


def regression(d, noise=0.2):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(d), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    return model


def stored():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@pytest.mark.usefixtures("param_mode")
@pytest.mark.parametrize("size", [2, 203], ids=["newton", "trained"])
def test_the_guide_that_fit_laplace_makes_leaves_no_params(size):
    x = torch.randn(30, size)
    other = AutoDelta(regression(3))
    mine = other(torch.randn(9, 3))["w"].detach().clone()
    before = stored()
    pl.fit_laplace(regression(size), (x, x[:, 0]), structure="diag", on_not_a_mode="ignore", progress=False)
    assert stored().keys() == before.keys()
    torch.testing.assert_close(other(torch.randn(9, 3))["w"], mine, rtol=0, atol=0)
    pyro.clear_param_store()
    assert AutoDelta(regression(3))(torch.randn(9, 3))["w"].shape == (3,)


@pytest.mark.usefixtures("param_mode")
def test_a_later_guide_starts_from_its_own_values():
    pl.fit_laplace(regression(2), (X, X.sum(1)), progress=False)
    assert AutoDelta(regression(3))(torch.randn(9, 3))["w"].shape == (3,)


def test_a_guide_that_fit_map_returned_keeps_its_params(param_mode):
    guide = pl.fit_map(regression(2), DATA, progress=False)
    before = {name: value.detach().clone() for name, value in guide.median().items()}
    names = set(stored())
    assert bool(names) is not param_mode
    pl.fit_laplace(regression(2), DATA, guide, progress=False)
    pl.fit_laplace(regression(2), DATA, progress=False)
    assert set(stored()) == names
    torch.testing.assert_close(guide(*DATA)["w"], before["w"], rtol=0, atol=0)


def test_params_of_the_program_stay_where_training_took_them(param_mode):
    program = Noisy(0.0 if param_mode else nn.Parameter(torch.zeros(())))  # local mode takes no plain parameters
    pl.fit_laplace(program, (X, X[:, 0] + 1.0), on_not_a_mode="ignore", progress=False)
    assert program.noise != 0.5
    assert set(stored()) == (set() if param_mode else {"noise", "shift"})
    if not param_mode:
        assert program.shift > 0.9
        torch.testing.assert_close(stored()["noise"], program.noise.detach(), rtol=0, atol=0)


@pytest.mark.usefixtures("param_mode")
@pytest.mark.parametrize("fit", [pl.fit_map, pl.fit_laplace])
def test_a_fit_that_finds_no_mode_leaves_no_params(fit):
    def model(x, y=None):
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("groups", 8):
            effect = pyro.sample("effect", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 5.0)), scale))
            pyro.sample("y", dist.Normal(effect, 15.0), obs=y)

    with pytest.raises(pl.NotAMode):
        fit(model, (torch.zeros(8), torch.linspace(-3.0, 8.0, 8)), progress=False)
    assert not stored()


@pytest.mark.usefixtures("param_mode")
def test_a_training_that_is_interrupted_leaves_no_params():
    steps = []

    def model(x, y=None):
        steps.append(len(steps))
        if len(steps) > 20:
            raise KeyboardInterrupt
        return regression(203)(x, y)

    x = torch.randn(30, 203)
    with pytest.raises(KeyboardInterrupt):
        pl.fit_map(model, (x, x[:, 0]), progress=False)
    assert not stored()
