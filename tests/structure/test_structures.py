"""Structures of the posterior precision of a program: dense per site, and different ones for different sites."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.structure.build import STRUCTURES, check_structure

pytestmark = pytest.mark.usefixtures("float64")

STD = 0.4


def normal(scale, *shape):
    return dist.Normal(torch.zeros(()), scale).expand(shape).to_event(len(shape))


def classifier(x, y):
    w1, b1 = pyro.sample("w1", normal(1.0, 2, 3)), pyro.sample("b1", normal(2.0, 3))
    w2, b2 = pyro.sample("w2", normal(1.0, 3, 2)), pyro.sample("b2", normal(0.5, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1 + b1) @ w2 + b2), obs=y)


def regression(x, y):
    """Linear, its two sites not orthogonal in the data; the prior of each has its own scale."""
    w, b = pyro.sample("w", normal(torch.tensor([0.5, 2.0]), 2)), pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w + b, STD), obs=y)


def scaled(x, y):
    """A scale that no operation captures, and weights whose prior depends on it."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    w1, w2 = pyro.sample("w1", normal(1.0, 2, 3)), pyro.sample("w2", normal(1.0, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, tau), obs=y.double())


def data(num_obs=12, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_obs, 2, generator=generator), torch.arange(num_obs) % 2


SHAPES = {
    classifier: {"w1": (2, 3), "b1": (3,), "w2": (3, 2), "b2": (2,)},
    regression: {"w": (2,), "b": ()},
    scaled: {"tau": (), "w1": (2, 3), "w2": (3,)},
}


def fit(model, structure="full", batches=None, **options):
    """The posterior at a point that need not be the mode."""
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.rand(shape, generator=generator) + 0.2 for name, shape in SHAPES[model].items()}
    # an exact Hessian may be indefinite away from the mode
    options = {"polish": options.get("curvature") == "hessian", "on_not_a_mode": "ignore"} | options
    return pl.fit_laplace(model, batches or data(), values, structure=structure, **options)


def block_diagonal(dense, layout, *groups):
    """A matrix with everything between groups of sites set to zero."""
    result = torch.zeros_like(dense)
    for group in groups:
        index = torch.cat([torch.arange(layout[name].start, layout[name].stop) for name in group])
        result[index[:, None], index[None]] = dense[index[:, None], index[None]]
    return result


def moments(*sites):
    """The posterior of `regression` with the other sites held, in closed form: precision, mean, log evidence."""
    x, y = data()
    y = y.double()
    columns = {"w": x, "b": torch.ones(len(x), 1)}
    prior = {"w": torch.tensor([0.5, 2.0]) ** -2, "b": torch.tensor([3.0]) ** -2}
    design = torch.cat([columns[name] for name in sites], 1)
    precision = design.T @ design / STD**2 + torch.cat([prior[name] for name in sites]).diag()
    return precision, torch.linalg.solve(precision, design.T @ y / STD**2)


def test_the_table_has_every_structure():
    assert set(STRUCTURES) == {"full", "block", "kron", "diag", "sparse", pl.Kron, pl.LowRank}


# --- block ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("model", [classifier, regression])
def test_block_is_the_diagonal_blocks_of_full(model, curvature):
    block, full = (fit(model, structure, curvature=curvature) for structure in ("block", "full"))
    expected = block_diagonal(full.precision.to_dense(), full.layout, *([name] for name in SHAPES[model]))
    assert_close(block.precision.to_dense(), expected, rtol=1e-10, atol=1e-10)
    assert [part.size for part in block.precision.blocks] == [full.latents[name].size for name in SHAPES[model]]


def test_block_of_a_linear_regression():
    (w, _), (b, _) = moments("w"), moments("b")
    guide = fit(regression, "block", polish=True)
    assert_close(guide.precision.to_dense(), torch.block_diag(w, b), rtol=1e-10, atol=1e-10)
    assert_close(torch.cat([guide.median()["w"], guide.median()["b"][None]]), moments("w", "b")[1])


def test_block_does_not_depend_on_the_batches():
    x, y = data()
    whole, parts = fit(classifier, "block"), fit(classifier, "block", [(x[:5], y[:5]), (x[5:], y[5:])])
    assert_close(whole.precision.to_dense(), parts.precision.to_dense(), rtol=1e-10, atol=1e-10)
    assert whole.log_evidence == pytest.approx(parts.log_evidence, rel=1e-10)


def test_block_names_the_sites_of_a_flat_direction():
    def flat(y):
        mu = pyro.sample("mu", normal(1.0))
        a, b = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (2,), ())), pyro.sample("b", normal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + a[0] + a[1] + b, 1.0), obs=y)

    values = {"mu": torch.tensor(0.0), "a": torch.zeros(2), "b": torch.tensor(0.0)}
    with pytest.raises(pl.IndefiniteCurvature, match=r"along 'a'"):
        pl.fit_laplace(flat, torch.ones(4), values, structure="block", polish=False)


# --- a mapping of sites to structures -------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_a_group_is_fitted_with_the_others_held(curvature):
    structure = {"b*": "full", "w1": "diag", "*": "block"}
    guide, full = fit(classifier, structure, curvature=curvature), fit(classifier, curvature=curvature)
    expected = block_diagonal(full.precision.to_dense(), full.layout, ["b1", "b2"], ["w2"])
    expected[full.layout["w1"], full.layout["w1"]] = full.precision.to_dense().diagonal()[full.layout["w1"]].diag()
    assert_close(guide.precision.to_dense(), expected, rtol=1e-10, atol=1e-10)
    assert guide.structure == structure


def test_a_kronecker_group_beside_a_dense_one():
    x, y = data(1)
    guide, full = (fit(classifier, s, (x, y)) for s in ({"?1": "kron", "*": "full"}, "full"))  # kron: exact for a datum
    expected = block_diagonal(full.precision.to_dense(), full.layout, ["w1", "b1"], ["w2", "b2"])
    assert_close(guide.precision.to_dense(), expected, rtol=1e-9, atol=1e-9)


def test_one_group_of_all_sites_is_that_structure():
    for structure in ("full", "kron", "diag", "block"):
        alone, mapped = fit(classifier, structure), fit(classifier, {"*": structure})
        assert_close(alone.precision.to_dense(), mapped.precision.to_dense(), rtol=1e-12, atol=1e-12)
        assert alone.log_evidence == pytest.approx(mapped.log_evidence, rel=1e-12)


def test_a_site_with_dense_columns_in_a_group():
    guide, full = fit(scaled, {"tau": "diag", "w2": "full", "w1": "kron"}), fit(scaled)
    for name in ("tau", "w2"):
        block = full.precision.to_dense()[full.layout[name], full.layout[name]]
        assert_close(guide.precision.to_dense()[guide.layout[name], guide.layout[name]], block)


def test_a_mapping_over_a_subset_of_sites():
    guide, full = fit(classifier, {"w2": "diag", "b2": "full"}, subset=["w2", "b2"]), fit(classifier, subset="?2")
    expected = block_diagonal(full.precision.to_dense(), full.layout, ["b2"])
    expected[:6, :6] = full.precision.to_dense().diagonal()[:6].diag()
    assert_close(guide.precision.to_dense(), expected, rtol=1e-10, atol=1e-10)


def test_draws_of_a_mapping_have_the_covariance_of_each_group():
    guide = fit(classifier, {"w1": "full", "*": "diag"})
    draws = guide.sample_theta(20_000)
    covariance = torch.linalg.inv(guide.precision.to_dense())
    scale = covariance.diagonal().sqrt()
    assert_close(torch.cov(draws.T) / scale / scale[:, None], covariance / scale / scale[:, None], rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"w*": "full"}, r"no glob of \['w\*'\] matches the random sites \['b1', 'b2'\]"),
        ({"*": "full", "v?": "diag"}, r"\['v\?'\] match none of the random sites \['w1', 'b1', 'w2', 'b2'\]"),
        ({"*": "full", "w1": "diag"}, r"\['w1'\] .*first match wins"),
        ({}, "empty mapping"),
        ({"*": "dense"}, r"'\*': 'dense' .*'full', 'block', 'kron', 'diag'"),
        ("dense", "'dense' is not one of 'full', 'block', 'kron', 'diag'.* mapping"),
    ],
)
def test_what_is_no_structure_is_refused(structure, message):
    with pytest.raises(pl.InvalidOption, match=message):
        fit(classifier, structure)


@pytest.mark.parametrize("structure", [{"*": {"*": "full"}}, {3: "full"}, None, 3, ["full"]])
def test_what_is_of_no_type_of_a_structure_is_refused(structure):
    with pytest.raises(pl.InvalidOption, match="one of 'full', 'block', 'kron', 'diag'"):
        check_structure(structure)


# --- low rank -------------------------------------------------------------------------------------


@pytest.fixture(params=["matrix", "sketch"])
def held(request):
    """Both forms of what is kept: small programs otherwise keep the matrix."""
    with pl.settings.using(**({"small": 1, "oversampling": 13} if request.param == "sketch" else {})):
        yield request.param


def low_rank_oracle(full, prior_std, rank):
    """Prior plus the leading eigenpairs of the whitened rest, from the dense precision."""
    prior = prior_std**-2
    values, vectors = torch.linalg.eigh((full - prior.diag()) / prior.sqrt() / prior.sqrt()[:, None])
    leading = values.abs().argsort(descending=True)[:rank]
    whitened = (vectors[:, leading] * values[leading]) @ vectors[:, leading].T
    return prior.diag() + whitened * prior.sqrt() * prior.sqrt()[:, None]


STDS = torch.cat([torch.full((6,), 1.0), torch.full((3,), 2.0), torch.full((6,), 1.0), torch.full((2,), 0.5)])


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "hessian"])
@pytest.mark.parametrize("num_obs", [8, 12])  # the rank of the curvature, which the columns of a sketch reach
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_low_rank_keeps_the_leading_whitened_eigenpairs(rank, num_obs, curvature, held):
    if held == "sketch" and curvature == "hessian":
        pytest.skip("an exact Hessian has full rank")
    full, low = (fit(classifier, s, data(num_obs), curvature=curvature) for s in ("full", pl.LowRank(rank)))
    expected = low_rank_oracle(full.precision.to_dense(), STDS, rank)
    assert_close(low.precision.to_dense(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("rank", "curvature"), [(8, "ggn"), (12, "ggn"), (17, "ggn"), (1000, "ggn"), (17, "hessian"), (1000, "hessian")]
)
def test_low_rank_is_exact_from_the_curvatures_own_rank_on(rank, curvature):
    few = data(8) if curvature == "ggn" else data()  # 8 data of two classes: rank 8
    full, low = (fit(classifier, s, few, curvature=curvature) for s in ("full", pl.LowRank(rank)))
    assert_close(low.precision.to_dense(), full.precision.to_dense(), rtol=1e-8, atol=1e-8)
    assert low.log_evidence == pytest.approx(full.log_evidence, rel=1e-10)


@pytest.mark.parametrize("passes", [1, 2])
def test_a_sketch_of_a_singular_curvature(passes):
    few = data(3)  # rank 3 of 17
    with pl.settings.using(small=1, oversampling=4):
        full, low = (fit(classifier, s, few) for s in ("full", pl.LowRank(4, passes)))
    assert_close(low.precision.to_dense(), full.precision.to_dense(), rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("held")
def test_low_rank_of_a_linear_regression():
    precision, mean = moments("w", "b")
    guide = fit(regression, pl.LowRank(3), polish=True)
    assert_close(guide.precision.to_dense(), precision, rtol=1e-9, atol=1e-9)
    assert_close(torch.cat([guide.median()["w"], guide.median()["b"][None]]), mean)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("model", [classifier, scaled])
def test_low_rank_does_not_depend_on_the_batches(model):
    x, y = data()
    structure = {"tau": "full", "*": pl.LowRank(3)} if model is scaled else pl.LowRank(3)
    whole, parts = fit(model, structure), fit(model, structure, [(x[:5], y[:5]), (x[5:7], y[5:7]), (x[7:], y[7:])])
    assert_close(whole.precision.to_dense(), parts.precision.to_dense(), rtol=1e-8, atol=1e-8)


def test_low_rank_of_a_subnetwork():
    mask = {
        name: torch.arange(torch.Size(shape).numel()).reshape(shape) % 2 == 0
        for name, shape in SHAPES[classifier].items()
    }
    full, low = (fit(classifier, s, subset=pl.Subnetwork(mask=mask)) for s in ("full", pl.LowRank(9)))
    assert low.latent_dim == 9
    assert_close(low.precision.to_dense(), full.precision.to_dense(), rtol=1e-8, atol=1e-8)


def test_low_rank_refuses_a_prior_that_is_not_diagonal_by_site():
    def model(x, y):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])))
        b = pyro.sample("b", normal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y.double())

    values = {"w": torch.zeros(2), "b": torch.tensor(0.0)}
    with pytest.raises(pl.UnsupportedProgram, match=r"diagonal prior .* sites \['w'\] couples .*'full'"):
        pl.fit_laplace(model, data(), values, structure=pl.LowRank(2), polish=False)
    guide = pl.fit_laplace(
        model, data(), values, structure={"w": "full", "*": pl.LowRank(1)}, polish=False, on_not_a_mode="ignore"
    )
    assert guide.latent_dim == 3


def test_low_rank_refuses_a_flat_prior_by_site():
    def model(x, y):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        b = pyro.sample("b", normal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y.double())

    values = {"w": torch.zeros(2), "b": torch.tensor(0.0)}
    with pytest.raises(pl.UnsupportedProgram, match=r"sites \['w'\] is not positive"):
        pl.fit_laplace(model, data(), values, structure=pl.LowRank(2), polish=False)


def test_low_rank_names_the_sites_of_an_indefinite_hessian():
    def model(y):
        z, other = pyro.sample("z", normal(1.0)), pyro.sample("other", normal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z**2 + other, 0.1), obs=y)

    values = {"z": torch.tensor(0.0), "other": torch.tensor(0.0)}
    with pytest.raises(pl.IndefiniteCurvature, match=r"sites \['z'\]"):
        pl.fit_laplace(model, torch.ones(4), values, structure=pl.LowRank(2), curvature="hessian", polish=False)


def test_draws_under_low_rank_have_its_covariance():
    guide = fit(classifier, pl.LowRank(4))
    covariance = torch.linalg.inv(guide.precision.to_dense())
    scale = covariance.diagonal().sqrt()
    draws = guide.sample_theta(20_000) / scale
    assert_close(torch.cov(draws.T), covariance / scale / scale[:, None], rtol=0, atol=0.04)


@pytest.mark.parametrize("rank", [0, -3, True])
def test_what_is_no_rank_is_refused(rank):
    with pytest.raises(pl.InvalidOption, match=r"rank=.* at least 1"):
        pl.LowRank(rank)
