"""`save` and `load`: the same posterior again, for every structure; damaged, foreign and mismatched files refused."""

import json
import os
import pickle
import random
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

import pyro_laplace as pl
from pyro_laplace.io import file
from pyro_laplace.state import packed

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared to the last digit."""


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, pyro.param("std", torch.tensor(2.0))).expand([3, 2]).to_event(2))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    mix = pyro.sample("mix", dist.Dirichlet(torch.tensor([2.0, 1.0, 1.0])))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal((x @ w).sum(-1) + mix[0], noise), obs=y)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 3, generator=generator)
    return x, x.sum(-1) + torch.randn(30, generator=generator)


def again(guide, path: Path, program=model, given=None):
    pl.save(guide, path / "posterior.safetensors")
    return pl.load(path / "posterior.safetensors", program, given)


def same(one, other) -> None:
    assert type(one) is type(other)
    assert one.log_evidence == other.log_evidence
    assert one.observed == other.observed
    assert one.layout == other.layout
    pyro.set_rng_seed(7)
    expected = one.sample_posterior(5)
    pyro.set_rng_seed(7)
    for name, value in other.sample_posterior(5).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    for name, value in other.quantiles([0.1, 0.5]).items():
        torch.testing.assert_close(value, one.quantiles([0.1, 0.5])[name], rtol=1e-12, atol=1e-12)


STRUCTURES = [
    "full",
    "block",
    "kron",
    pl.Kron("reduce"),
    "diag",
    pl.LowRank(3),
    "sparse",
    {"w": "diag", "*": "full"},
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_every_structure_comes_back(structure, tmp_path):
    if structure == pl.LowRank(3) or structure in ("kron", pl.Kron("reduce")):
        options = {"subset": ["w", "noise"], "curvature": "ggn"}
    else:
        options = {}
    guide = pl.fit_laplace(model, data(), structure=structure, **options)
    loaded = again(guide, tmp_path, given=data(1))
    same(guide, loaded)
    assert loaded.structure == structure
    assert loaded.curvature == guide.curvature
    assert torch.equal(loaded.precision.to_dense(), guide.precision.to_dense())
    assert loaded.mode.decrement == guide.mode.decrement
    assert loaded.mode.stopped is guide.mode.stopped
    assert list(loaded.hyperparameters) == ["std"]


def test_more_data_than_parameters_and_fewer(tmp_path):
    x, y = data()
    for rows in (4, 30):  # the dual form, and the primal
        guide = pl.fit_laplace(model, (x[:rows], y[:rows]), subset=["w"], curvature="ggn")
        same(guide, again(guide, tmp_path))


@pytest.mark.parametrize("structure", ["full", "diag", "sparse"])
def test_a_loaded_posterior_is_updated(structure, tmp_path):
    guide = pl.fit_laplace(model, data(), structure=structure)
    loaded = again(guide, tmp_path)
    one, other = (pl.update(each, data(1)) for each in (guide, loaded))
    same(one, other)
    assert one.log_evidence != guide.log_evidence


def test_a_loaded_posterior_takes_another_prior(tmp_path):
    guide = pl.fit_laplace(model, data())
    loaded = again(guide, tmp_path)
    other = guide.prior.of_diagonal(torch.full((9,), 3.0))
    one, two = (each.likelihood_sum.posterior(other).to_dense() for each in (guide, loaded))
    assert torch.equal(one, two)
    pyro.clear_param_store()
    pyro.param("std", torch.tensor(2.0))
    assert float(pl.log_evidence(model, loaded, data())) == pytest.approx(guide.log_evidence, rel=1e-10)


def test_some_sites_some_coordinates_and_hyperparameters(tmp_path):
    mask = torch.zeros(9, dtype=torch.bool)
    mask[[0, 4]] = True
    named = {"w": mask[:6].reshape(3, 2)}
    for options in ({"subset": ["w"]}, {"subset": pl.Subnetwork(mask=named)}):
        guide = pl.fit_laplace(model, data(), **options)
        loaded = again(guide, tmp_path)
        same(guide, loaded)
        assert loaded.partial == guide.partial
    best = pl.maximize_evidence(model, data(), hyperparameters=["std"], keep=False, progress=False)
    loaded = again(best, tmp_path)
    assert torch.equal(loaded.hyperparameters["std"], best.hyperparameters["std"])
    assert loaded.evidence_path == best.evidence_path
    assert loaded.fit_seconds == best.fit_seconds
    prediction = pl.LinearizedPredictive(model, loaded)(data(2)[0])["y"]
    torch.testing.assert_close(prediction.mean, pl.LinearizedPredictive(model, best)(data(2)[0])["y"].mean)


def test_mixtures(tmp_path):
    starts = [pl.fit_laplace(model, data()).median() for _ in range(2)]
    mixture = pl.fit_laplace(model, data(), starts)
    same(mixture, again(mixture, tmp_path, given=data()))
    ensemble = pl.LaplaceMixture.of_modes(model, data(), starts)
    loaded = again(ensemble, tmp_path)
    assert torch.equal(loaded.weights, ensemble.weights)
    assert [torch.equal(a.theta, b.theta) for a, b in zip(loaded.components, ensemble.components, strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize("structure", ["full", "sparse"])
def test_a_nested_posterior(structure, tmp_path):
    def groups(group, y=None):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 1.0)), pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", int(group.max()) + 1):
            u = pyro.sample("u", dist.Normal(mu, tau))
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Normal(u[..., group], 0.5), obs=y)

    group = torch.arange(12) % 4
    given = (group, torch.randn(12))
    guide = pl.fit_nested_laplace(groups, given, structure=structure, progress=False)
    loaded = again(guide, tmp_path, groups, given)
    same(guide, loaded)
    assert (loaded.hyper, loaded.outer, repr(loaded)) == (guide.hyper, guide.outer, repr(guide))
    assert torch.equal(loaded.weights, guide.weights)
    assert torch.equal(loaded.hyper_points["tau"], guide.hyper_points["tau"])
    found = [pl.diagnose(groups, each, given, progress=False).khat for each in (guide, loaded)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_network(tmp_path):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    bayesian = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    x, labels = data()[0], torch.randint(0, 3, (30,))
    guide = pl.fit_laplace(bayesian, (x, labels), structure="kron", progress=False)
    loaded = again(guide, tmp_path, bayesian, (x, labels))
    same(guide, loaded)
    one, two = (pl.LinearizedPredictive(bayesian, each)(x)["y"].probs for each in (guide, loaded))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


SUPPORTS = [
    dist.Gamma(2.0, 1.0),
    dist.Beta(2.0, 2.0),
    dist.Uniform(-1.0, 3.0),
    dist.Uniform(torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 4.0])).to_event(1),
    dist.LKJCholesky(3, 1.0),
    dist.Dirichlet(torch.ones(3)),
    dist.Pareto(1.0, 3.0),
    dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()),
    dist.ImproperUniform(constraints.positive, (), ()),
]


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@pytest.mark.parametrize("prior", SUPPORTS, ids=lambda prior: type(prior).__name__)
def test_supports_come_back(prior, tmp_path):
    def with_site(y):
        value = pyro.sample("value", prior)
        pyro.sample("also", dist.Normal(value.sum(), 1.0), obs=torch.tensor(2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(value.sum(), 1.0), obs=y)

    y = torch.tensor([1.5, 2.5, 2.0])
    guide = pl.fit_laplace(with_site, y)
    loaded = again(guide, tmp_path, with_site, y)
    same(guide, loaded)
    assert repr(loaded.latents["value"].support) == repr(guide.latents["value"].support)


def test_plates_come_back(tmp_path):
    def grouped(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3, dim=-1):
            u = pyro.sample("u", dist.Normal(mu, 1.0))
            with pyro.plate("data", 4, dim=-2):
                pyro.sample("y", dist.Normal(u, 1.0), obs=y)

    y = torch.randn(4, 3)
    guide = pl.fit_laplace(grouped, y)
    loaded = again(guide, tmp_path, grouped, y)
    same(guide, loaded)
    trace = pyro.poutine.trace(loaded).get_trace()
    assert [frame.name for frame in trace.nodes["u"]["cond_indep_stack"]] == ["groups"]


# --- files that are refused ----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    """A good file."""
    pl.save(pl.fit_laplace(model, data(), subset=["noise"]), tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def test_random_corruptions_are_all_seen(saved):
    good, chance = saved.read_bytes(), random.Random(0)
    bad = saved.with_name("bad.safetensors")
    for _ in range(1_000):
        kind, place = chance.randrange(4), chance.randrange(len(good))
        if kind == 0:  # a bit
            raw = bytearray(good)
            raw[place] ^= 1 << chance.randrange(8)
        elif kind == 1:  # cut short
            raw = good[:place]
        elif kind == 2:  # a stretch of noise
            raw = bytearray(good)
            raw[place : place + 40] = chance.randbytes(len(raw[place : place + 40]))
            raw = raw if raw != good else raw + b"x"
        else:  # something put in
            raw = good[:place] + chance.randbytes(1 + chance.randrange(9)) + good[place:]
        bad.write_bytes(bytes(raw))
        with pytest.raises(pl.InvalidData, match="Nothing of it was loaded"):
            pl.load(bad, model)


def test_a_pickle_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "posterior.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(pl.InvalidData, match=r"is a pickle.*is not read"):
        pl.load(path, model)
    torch.save({"bomb": Bomb()}, path)
    with pytest.raises(pl.InvalidData, match="is a pickle"):
        pl.load(path, model)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_told_apart(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    path = tmp_path / "posterior.safetensors"
    with pytest.raises(pl.InvalidData, match="No such file"):
        pl.load(path, model)
    path.write_bytes(b"")
    with pytest.raises(pl.InvalidData, match="is empty"):
        pl.load(path, model)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(pl.InvalidData, match="of safetensors that holds no posterior"):
        pl.load(path, model)
    with monkeypatch.context() as patch:
        patch.setattr(file, "FORMAT", "99")
        pl.save(pl.fit_laplace(model, data(), subset=["noise"]), path)
    with pytest.raises(pl.InvalidData, match=r"format 99.*install a newer pyro_laplace"):
        pl.load(path, model)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        {"sites": []},
        {"sites": [{"name": "w"}], "posterior": {"kind": "AutoLaplace"}},
        {"sites": 3, "posterior": 4},
    ],
)
def test_a_file_with_a_right_checksum_and_wrong_content(tree, tmp_path):
    path = tmp_path / "posterior.safetensors"
    file.write(path, packed(tree))
    with pytest.raises(pl.InvalidData, match="what it holds is no posterior"):
        pl.load(path, model)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        pl.save(pl.fit_laplace(model, data(1), subset=["noise"]), saved)
    assert saved.read_bytes() == before
    assert [each.name for each in saved.parent.iterdir()] == [saved.name]


def test_what_cannot_be_saved_is_told(tmp_path):
    with pytest.raises(pl.InvalidOption, match="not AutoDelta"):
        pl.save(pl.fit_map(golden_regression, golden_data()), tmp_path / "a")
    with pytest.raises(pl.InvalidData, match="there is no folder"):
        pl.save(pl.fit_laplace(model, data()), tmp_path / "none" / "a")


def other_model(change: str):
    def changed(x, y=None):
        shape = [3, 1] if change == "shape" else [3, 2]
        name = "v" if change == "name" else "w"
        w = pyro.sample(name, dist.Normal(0.0, 2.0).expand(shape).to_event(2))
        noise = pyro.sample("noise", dist.Beta(2.0, 2.0) if change == "support" else dist.LogNormal(0.0, 1.0))
        mix = pyro.sample("mix", dist.Dirichlet(torch.tensor([2.0, 1.0, 1.0])))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal((x @ w).sum(-1) + mix[0], noise), obs=y)

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name", r"without \['w'\], with \['v'\] besides"),
        ("shape", r"site 'w' has the shape \(3, 2\) in .*, and \(3, 1\) in the model"),
        ("support", "site 'noise' has the support .*, and .* in the model"),
    ],
)
def test_another_model_is_refused(change, message, tmp_path):
    pl.save(pl.fit_laplace(model, data()), tmp_path / "a")
    with pytest.raises(pl.UnsupportedProgram, match=message):
        pl.load(tmp_path / "a", other_model(change), data())


@pytest.mark.parametrize(
    ("hidden", "dtype", "std", "message"),
    [
        (5, torch.float64, 1.0, r"site '0.weight' has the shape \(4, 3\)"),
        (4, torch.float32, 1.0, r"float64, and the model is of torch\.float32"),
        (4, torch.float64, dist.HalfNormal(1.0), r"with \['0.weight.scale'"),
    ],
)
def test_another_network_is_refused_without_data(hidden, dtype, std, message, tmp_path):
    """Its priors run without, and show names, shapes, supports and dtype; a scale of the likelihood does not matter."""

    def network(hidden, dtype, std):
        net = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(dtype)
        return pl.bayesianize(net, pl.nn.Isotropic(std), pl.nn.Regression(dist.HalfNormal(1.0)))

    one, (x, _) = network(4, torch.float64, 1.0), data()
    point = {name: weight.detach() for name, weight in one.module.named_parameters()} | {"noise": torch.tensor(0.5)}
    batch = x, x[:, 0]
    pl.save(pl.fit_laplace(one, batch, point, polish=False, structure="diag", on_not_a_mode="ignore"), tmp_path / "a")
    assert "noise" in pl.load(tmp_path / "a", network(4, torch.float64, 1.0)).layout
    with pytest.raises(pl.UnsupportedProgram, match=message):
        pl.load(tmp_path / "a", network(hidden, dtype, std))


def test_a_program_that_holds_its_data_is_compared_without_any(tmp_path):
    x, y = data()

    def closed(size=2):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, 0] * w.sum(), 1.0), obs=y)

    pl.save(pl.fit_laplace(closed, (), progress=False), tmp_path / "a")
    assert list(pl.load(tmp_path / "a", closed).layout) == ["w"]
    with pytest.raises(pl.UnsupportedProgram, match=r"site 'w' has the shape \(2,\)"):
        pl.load(tmp_path / "a", lambda: closed(3))


def test_another_dtype_is_refused(tmp_path):
    pl.save(pl.fit_laplace(golden_regression, golden_data()), tmp_path / "a")
    single = tuple(each.float() for each in golden_data())
    torch.set_default_dtype(torch.float32)
    try:
        with pytest.raises(pl.UnsupportedProgram, match=r"float64, and the model is of torch\.float32"):
            pl.load(tmp_path / "a", golden_regression, single)
    finally:
        torch.set_default_dtype(torch.float64)


# --- files of earlier versions ---------------------------------------------------------------------------


def golden_regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w[0] + w[1] * x, 0.5), obs=y)


def golden_data() -> tuple[Tensor, Tensor]:
    x = torch.arange(6.0)
    return x, 1.0 + 0.5 * x


@pytest.mark.parametrize("structure", ["full", "diag", "kron", "mixture"])
def test_files_of_the_first_format_are_read(structure):
    """Against the closed form of the regression that they hold."""
    guide = pl.load(GOLDEN / f"format-1-{structure}.safetensors", golden_regression, golden_data())
    x, y = golden_data()
    design = torch.stack([torch.ones(6), x], 1)
    precision = design.mT @ design / 0.25 + torch.eye(2) / 4.0
    mean = torch.linalg.solve(precision, design.mT @ y / 0.25)
    torch.testing.assert_close(guide.median()["w"], mean, rtol=1e-6, atol=1e-6)
    first = guide.components[0] if structure == "mixture" else guide
    expected = torch.diag(precision.diagonal()) if structure == "diag" else precision
    torch.testing.assert_close(first.precision.to_dense(), expected, rtol=1e-9, atol=1e-9)
    document, _ = file.read(GOLDEN / f"format-1-{structure}.safetensors")
    assert "pyro-laplace" in json.dumps(document)
