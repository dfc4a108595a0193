"""What holds for several curvatures: terms that have no Fisher information, Kronecker factors, linear programs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.fisher import PROBLEMS, N, assert_same, data_of, diagonal, gaussian, known_scale, matrix, student
from programs.zoo import Case, map_guide_at_theta, mlp_classifier, mlp_regression, normal
from pyro import poutine

import pyro_laplace as pl
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.linearized.choose import nonlinearity
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")


def several_terms(x, y):
    """Two observed sites, a factor in a plate, and a prior written as an observed site."""
    w = pyro.sample("w", normal(1.0, 4))
    pyro.sample("prior", dist.Normal(0.5, 2.0).expand_by([4]).to_event(1), obs=w)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)
        pyro.sample("z", dist.Poisson((x @ w).exp()), obs=(y > 0).double())
        pyro.factor("penalty", -((x @ w) ** 4))


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
def test_factors_and_derived_sites_keep_their_hessian(curvature):
    data = x, y = data_of(PROBLEMS["known_scale"])
    program = Program.trace(several_terms, as_data(data))
    theta = 0.4 * torch.randn(4, generator=torch.Generator().manual_seed(2))
    point = Anchor(theta, torch.arange(4), program.latents)
    z = (y > 0).double()
    exact = torch.func.hessian(lambda t: ((x @ t) ** 4).sum() + 0.5 * (((t - 0.5) / 2) ** 2).sum())(theta)
    found = matrix(CURVATURES[curvature], program, point, data) - exact
    if curvature == "empirical_fisher":
        scores = torch.func.jacrev(lambda t: torch.cat([gaussian(y, x @ t, 0.5), z * (x @ t) - (x @ t).exp()]))(theta)
        assert_same(found, scores.T @ scores)
    else:
        assert torch.linalg.eigvalsh(found).min() > -1e-9
        assert_same(diagonal(CURVATURES[curvature], program, point, data), (found + exact).diagonal())


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
@pytest.mark.parametrize("make", [mlp_classifier, mlp_regression])
def test_kron_of_one_datum_is_the_block_diagonal(make, curvature):
    """A datum's factors are its outer product; over labels they share the input."""
    case = make()
    case = Case(case.model, tuple(tensor[:1] for tensor in case.data))
    theta = 0.4 * torch.randn(case.flat.size, generator=torch.Generator().manual_seed(2))
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": curvature}
    prec = {}
    for structure in ("full", "kron"):
        pyro.set_rng_seed(3)
        guide = pl.fit_laplace(case.model, case.data, map_guide_at_theta(case, theta), structure=structure, **options)
        prec[structure] = guide.precision.to_dense()
    layout = case.flat.layout
    for sites in (("w1", "b1"), ("w2", "b2")):
        index = torch.cat([torch.arange(layout[name].start, layout[name].stop) for name in sites])
        assert_same(prec["kron"][index][:, index], prec["full"][index][:, index])


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
def test_kron_does_not_see_masked_data(curvature):
    x, y = data_of(PROBLEMS["network"])
    keep = torch.arange(N) % 3 != 0

    def masked(x, y, keep):
        w1, w2 = pyro.sample("w1", normal(1.0, 4, 3)), pyro.sample("w2", normal(1.0, 3, 3))
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1) @ w2), obs=y)

    values = {"w1": 0.5 * x[:4, :3], "w2": 0.5 * x[4:7, :3]}
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": curvature, "structure": "kron"}
    everything = {"x": x, "y": y, "keep": keep}
    kept = {"x": x[keep], "y": y[keep], "keep": keep[keep]}
    found, expected = (
        pl.fit_laplace(masked, data, values, **options).precision.to_dense() for data in (everything, kept)
    )
    assert_same(found, expected)


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
def test_a_linear_program_counts_as_linear(curvature):
    data = data_of(PROBLEMS["student"])
    for model in (known_scale, student):
        pyro.clear_param_store()
        guide = pl.fit_laplace(model, data, curvature=curvature, progress=False)
        assert nonlinearity(model, guide, as_data(data)) < 1e-6
