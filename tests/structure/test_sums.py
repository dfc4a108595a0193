"""What every structure's sum over data can do: other priors, halves, states, weights; and a structure from outside."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.reading.records import Factors
from pyro_laplace.structure.build import STRUCTURES, restore, sum_over_data
from pyro_laplace.structure.diag import DiagBlock
from pyro_laplace.structure.sum import Sum

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = {"w1": (3, 8), "b1": (8,), "w2": (8, 2), "b2": (2,)}
MAPPING = {"?1": "kron", "w2": "diag", "*": "full"}
STRUCTURES_OF = ["full", "rows", "block", "kron", pl.Kron("reduce"), "diag", "sparse", pl.LowRank(4), "sketch"]
STRUCTURES_OF += [MAPPING]


def data(num_obs=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_obs, 3, generator=generator)
    return x, (x[:, 0] > 0).long(), torch.randn(num_obs, 2, generator=generator)


def model_of(scale=1.0, two_terms=False, noise=0.5):
    """A network with one prior scale; its outputs are logits of y, and the locations of z."""

    def model(x, y, z):
        weights = {
            name: pyro.sample(name, dist.Normal(torch.zeros(shape), scale).to_event(len(shape)))
            for name, shape in SHAPES.items()
        }
        f = torch.tanh(x @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=f), obs=y)
            if two_terms:
                pyro.sample("z", dist.Normal(f, noise).to_event(1), obs=z)

    return model


def point():
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) / 2 for name, shape in SHAPES.items()}


@pytest.fixture(params=STRUCTURES_OF, ids=str)
def structure(request):
    """Every structure, in each form of what it keeps: rows and matrix, sketch and matrix."""
    if request.param == "rows":
        with pl.settings.using(small=1):
            yield "full"
    elif request.param == "sketch":
        with pl.settings.using(small=1, oversampling=24):  # the curvature has rank 24
            yield pl.LowRank(4)
    else:
        yield request.param


def fit(structure, scale=1.0, batch=None, **options):
    return pl.fit_laplace(
        model_of(scale, **options), batch or data(), point(), structure=structure, polish=False, on_not_a_mode="ignore"
    )


def assert_same(found, expected, tol=1e-10):
    assert_close(found, expected, rtol=tol, atol=tol)


# --- the contract ---------------------------------------------------------------------------------


def test_a_prior_needs_no_data(structure):
    """Two posteriors of one sum are the fits under two priors."""
    narrow, wide = fit(structure, 0.3), fit(structure, 2.0)
    for other in (narrow, wide, narrow):
        found = narrow.likelihood_sum.posterior(other.prior)
        tol = 1e-10
        if structure == pl.LowRank(4) and narrow.likelihood_sum.sums["y",].test is not None:
            tol = 1e-7  # of another sketch, whose columns reach the rank
        assert_same(found.to_dense(), other.precision.to_dense(), tol)
        assert_same(found.log_det(), other.precision.log_det(), tol)


def test_halves_merge_to_the_whole(structure):
    x, y, z = data()
    whole = fit(structure)
    halves = [fit(structure, batch=(x[s], y[s], z[s])).likelihood_sum for s in (slice(0, 10), slice(10, 24))]
    before = [half.times(torch.eye(len(half.gradient))) for half in halves]
    merged = halves[0].merged(halves[1])
    assert_same(merged.posterior(whole.prior).to_dense(), whole.precision.to_dense())
    assert_same(merged.gradient, whole.likelihood_sum.gradient)
    assert merged.log_lik == pytest.approx(whole.likelihood_sum.log_lik, rel=1e-12)
    assert merged.num_data == 24
    for half, kept in zip(halves, before, strict=True):  # neither is changed
        assert torch.equal(half.times(torch.eye(len(half.gradient))), kept)


@pytest.mark.parametrize("two_terms", [False, True])
def test_a_state_says_all(structure, two_terms):
    guide = fit(structure, two_terms=two_terms)
    kept = guide.likelihood_sum
    state = pickle.loads(pickle.dumps(kept.state()))
    found = restore(state, kept.anchor, kept.structure)
    assert_same(found.posterior(guide.prior).to_dense(), guide.precision.to_dense())
    assert_same(found.gradient, kept.gradient, 0)
    assert found.statistics == kept.statistics
    assert found.num_data == kept.num_data
    again = found.merged(kept)  # what was restored goes on
    assert_same(again.posterior(guide.prior).to_dense(), kept.merged(kept).posterior(guide.prior).to_dense())


def test_products_are_those_of_the_likelihoods_part(structure):
    guide = fit(structure)
    lam = guide.likelihood_sum.posterior(Prior.of_diagonal(torch.full((50,), 1e-3))).to_dense()
    if isinstance(structure, pl.LowRank):
        rank = torch.linalg.matrix_rank(guide.likelihood_sum.times(torch.eye(50)), hermitian=True)
        assert int(rank) == 24  # all that there is, and not the rank that a posterior keeps
        return
    assert_same(guide.likelihood_sum.times(torch.eye(50)), lam - 1e-3 * torch.eye(50), 1e-9)


def test_factors_multiply_the_terms_curvature(structure):
    """A noise c times as large divides the curvature of its term by c^2."""
    if isinstance(structure, pl.LowRank):
        structure = pl.LowRank(50)
    guide, other = fit(structure, two_terms=True), fit(structure, two_terms=True, noise=1.5)
    found = guide.likelihood_sum.posterior(guide.prior, {"z": (0.5 / 1.5) ** 2})
    assert_same(found.to_dense(), other.precision.to_dense(), 1e-9)
    with pytest.raises(pl.InvalidOption, match=r"'q'.*'y', 'z'"):
        guide.likelihood_sum.posterior(guide.prior, {"q": 2.0})


def test_statistics_say_the_log_likelihood_under_another_noise():
    guide, other = fit("diag", two_terms=True), fit("diag", two_terms=True, noise=1.5)
    own, c = guide.likelihood_sum.statistics["z"], torch.tensor(3.0)
    assert own.count == 48
    found = own.log_lik + own.squares * (1 - c**-2) / 2 - own.count * c.log()
    assert float(found) == pytest.approx(other.likelihood_sum.statistics["z"].log_lik, rel=1e-12)
    assert guide.likelihood_sum.statistics["y"].squares is None


def test_the_quadratic_model_of_a_linear_program_is_exact():
    x, _, z = data()

    def model(x, z):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ w, 0.5), obs=z)

    guide = pl.fit_laplace(model, (x, z[:, 0]), {"w": torch.zeros(3)}, polish=False, on_not_a_mode="ignore")
    there = torch.tensor([0.3, -1.0, 2.0])
    found = guide.likelihood_sum.at(there)
    log_lik = dist.Normal(x @ there, 0.5).log_prob(z[:, 0]).sum()
    assert found.log_lik == pytest.approx(float(log_lik), rel=1e-12)
    assert_same(found.gradient, x.T @ (z[:, 0] - x @ there) / 0.25)


def test_what_is_kept_is_a_value(structure):
    guide = fit(structure)
    for kept in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        found = kept.likelihood_sum.posterior(kept.prior)
        assert_same(found.to_dense(), guide.precision.to_dense())


def test_sums_of_another_point_do_not_merge():
    moved = {name: value + 1.0 for name, value in point().items()}
    one = fit("diag").likelihood_sum
    other = pl.fit_laplace(model_of(), data(), moved, structure="diag", polish=False, on_not_a_mode="ignore")
    with pytest.raises(pl.InvalidOption, match="differ in their theta"):
        one.merged(other.likelihood_sum)
    with pytest.raises(pl.InvalidOption, match="structure, 'diag' and 'full'"):
        one.merged(fit("full").likelihood_sum)


def test_a_sum_that_is_too_large_is_not_kept_and_said_so():
    with pl.settings.using(keep_sum_bytes=100):
        guide = fit("full")
    assert guide.likelihood_sum is None
    with pytest.raises(pl.InvalidOption, match="keep_sum_bytes"):
        pl.update(guide, data())


def test_hyperparameters_are_part_of_where_a_sum_was_measured():
    x, _, z = data()

    def model(x, z):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        other = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(torch.zeros(3), scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ w, other), obs=z)

    guide = pl.fit_laplace(model, (x, z[:, 0]), progress=False)
    assert {name: float(value) for name, value in guide.likelihood_sum.anchor.hyperparameters.items()} == {"scale": 2.0}
    pyro.get_param_store()["scale"] = torch.tensor(3.0)
    later = pl.fit_laplace(model, (x, z[:, 0]), guide.median(), polish=False, on_not_a_mode="ignore")
    with pytest.raises(pl.InvalidOption, match="hyperparameter 'scale'"):
        guide.likelihood_sum.merged(later.likelihood_sum)


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_factor_is_finite_and_not_negative(structure, factor):
    guide = fit(structure)
    with pytest.raises(pl.InvalidOption, match=r"factors=\{'y'"):
        guide.likelihood_sum.posterior(guide.prior, {"y": factor})


def test_sums_of_several_terms_are_their_own(structure):
    """What weighs terms gives a sum that shares no tensor with them."""
    guide = fit(structure, two_terms=True)
    parts = [(each, 0.5) for each in guide.likelihood_sum.sums.values()]
    total = type(parts[0][0]).weighted(parts)
    before = total.times(torch.eye(50))
    for tensor in tensors_of(parts[0][0].state()):
        tensor += 1
    assert torch.equal(total.times(torch.eye(50)), before)


def tensors_of(state):
    if isinstance(state, torch.Tensor):
        return [state] if state.is_floating_point() else []
    if isinstance(state, dict):
        each = [part for name, part in state.items() if name != "test"]  # a sketch's test matrix is never added to
    else:
        each = state if isinstance(state, list) else []
    return [tensor for part in each for tensor in tensors_of(part)]


def test_mappings_in_another_order_are_other_structures():
    one, other = fit({"w1": "diag", "*": "full"}), fit({"*": "full"})
    swapped = fit({"w1": "diag", "w*": "full", "*": "full"})
    for each in (other, swapped):
        with pytest.raises(pl.InvalidOption, match="differ in their structure"):
            one.likelihood_sum.merged(each.likelihood_sum)


def test_a_flat_direction_of_many_coordinates_is_named_without_a_matrix():
    """A diagonal that is not positive, of so many coordinates that their matrix would be too large."""

    def model(x):
        w = pyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), (4_000,)))
        v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(v.sum() + 0 * w[0], 1.0), obs=x)

    values = {"flat": torch.zeros(4_000), "v": torch.zeros(2)}
    with pl.settings.using(block_bytes=2**26), pytest.raises(pl.IndefiniteCurvature, match=r"\['flat'\]"):
        pl.fit_laplace(model, torch.zeros(3), values, structure="diag", polish=False, on_not_a_mode="ignore")


# --- coordinates that no product holds --------------------------------------------------------------


def test_what_no_product_holds_may_differ_between_chunks():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(2)

    def model(x):
        a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a.sum() + b.sum(), 1.0), obs=x)

    program = Program.trace(model, as_data(x))
    anchor = Anchor(program.start, torch.arange(5), program.latents)
    prior = Prior.of_diagonal(torch.ones(5))
    halves, expected = [], torch.eye(5)
    for indices in (([2, 0], [0, 1, 4]), ([3], [4, 3])):
        halves.append(STRUCTURES["kron"].plan("kron", anchor, prior))
        for index in indices:
            rows = torch.randn(6, len(index), generator=generator)
            halves[-1].add(Columns(5, Factors([], torch.tensor(index), rows[:4].unsqueeze(1), rows[4:])))
            expected[torch.tensor(index)[:, None], torch.tensor(index)] += rows.mT @ rows
    halves[0].merge(halves[1])
    assert_same(halves[0].posterior(prior).to_dense(), expected)


def test_a_flat_direction_that_no_product_holds_is_named():
    """Dense coordinates come in the order of the operations, and sites are named in their own."""

    def model(x):
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), (3,)))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a.sum() + b.sum(), 1.0), obs=x)

    x = torch.zeros(2)
    program = Program.trace(model, as_data(x))
    anchor = Anchor(program.start, torch.arange(5), program.latents)
    prior = Prior.of_diagonal(torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    total = STRUCTURES["kron"].plan("kron", anchor, prior)
    rows = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]).unsqueeze(1)
    total.add(Columns(5, Factors([], torch.tensor([4, 3, 2, 1, 0]), rows, rows[:0, 0])))
    with pytest.raises(pl.IndefiniteCurvature, match=r"sites \['a'\]"):
        total.posterior(prior)


def test_a_weight_that_is_captured_in_some_chunks_only_is_refused():
    """The words of an embedding are one-hot rows up to a number of them: here in the second chunk alone."""
    generator = torch.Generator().manual_seed(0)
    words, y = torch.randint(6, (110,), generator=generator), torch.randn(110, generator=generator)

    def model(words, y):
        table = pyro.sample("table", dist.Normal(torch.zeros(6, 1), 1.0).to_event(2))
        with pyro.plate("data", len(words)):
            pyro.sample("y", dist.Normal(torch.nn.functional.embedding(words, table)[..., 0], 1.0), obs=y)

    batches, values = [(words[:100], y[:100]), (words[100:], y[100:])], {"table": torch.zeros(6, 1)}
    options = {"polish": False, "on_not_a_mode": "ignore"}
    with pl.settings.using(one_hot_elements=100, chunk_bytes=3500):
        dense = pl.fit_laplace(model, batches, values, structure="full", **options)
        with pytest.raises(pl.UnsupportedProgram, match=r"\['table'\].*some chunks"):
            pl.fit_laplace(model, batches, values, structure="kron", **options)
    counts = torch.bincount(words, minlength=6).double()
    assert_same(dense.precision.to_dense(), (1 + counts).diag())


# --- rounding -------------------------------------------------------------------------------------


def rounded(count, scale=4.0):
    """A float32 network, two halves of whose inputs are nearly alike, whose products float32 rounds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator, dtype=torch.float32)
    x[:, 10:] = x[:, :10] + 1e-3 * x[:, 10:]

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(1, 20, dtype=torch.float32), scale).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.nn.functional.linear(x, w)[:, 0], 0.1), obs=y)

    return model, (x[count], x[count, 0]), {"w": torch.zeros(1, 20, dtype=torch.float32)}


ROUNDED = {"structure": "kron", "polish": False, "on_not_a_mode": "ignore"}


def test_a_prior_for_which_the_sums_are_too_coarse_says_the_way_out():
    narrow, wide = pl.fit_laplace(*rounded(slice(0, 400), 0.01), **ROUNDED), rounded(slice(0, 400))
    assert not narrow.likelihood_sum.double
    expected = pl.fit_laplace(*wide, **ROUNDED)
    assert expected.likelihood_sum.double
    with pytest.raises(pl.LaplaceError, match=r"\['w'\].*kron_rounding=1e-9"):
        narrow.likelihood_sum.posterior(expected.prior)
    with pl.settings.using(kron_rounding=1e-9):
        fine = pl.fit_laplace(*rounded(slice(0, 400), 0.01), **ROUNDED).likelihood_sum.posterior(expected.prior)
    assert_close(fine.variance(), expected.precision.variance(), rtol=1e-5, atol=0)


def test_an_update_knows_that_a_part_was_summed_in_single_precision():
    few, all_data = pl.fit_laplace(*rounded(slice(0, 1)), **ROUNDED), pl.fit_laplace(*rounded(slice(0, 400)), **ROUNDED)
    assert not few.likelihood_sum.double
    assert all_data.likelihood_sum.double
    _, rest, _ = rounded(slice(1, 400))
    updated = pl.update(few, rest, on_not_a_mode="ignore")
    assert not updated.likelihood_sum.double
    with pytest.raises(pl.LaplaceError, match="kron_rounding"):
        updated.likelihood_sum.posterior(updated.prior)
    assert_close(updated.precision.log_det(), all_data.precision.log_det(), rtol=1e-3, atol=0)


# --- a sketch -------------------------------------------------------------------------------------


def test_further_passes_sharpen_a_sketch():
    """A slowly falling spectrum, many more directions than the sketch has columns: power iteration gains each time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 120, generator=generator) * torch.arange(1, 121) ** -0.5

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(120), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    expected, errors = torch.linalg.eigvalsh(x.T @ x).flip(0)[:10], []
    options = {"polish": False, "on_not_a_mode": "ignore"}
    for passes in (1, 2, 3, 6):
        with pl.settings.using(small=1, oversampling=10):
            guide = pl.fit_laplace(
                model, (x, x[:, 0]), {"w": torch.zeros(120)}, structure=pl.LowRank(10, passes), **options
            )
        (block,) = guide.precision.blocks
        errors.append(float((block.eigenvalues.sort(descending=True).values / expected - 1).abs().max()))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]
    assert errors[3] < 0.7 * errors[2]


def test_an_indefinite_sketch_reaches_the_rank():
    """An exact Hessian of rank 6 in 60 coordinates, with eigenvalues of both signs."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 6, generator=generator)).Q
    values = torch.tensor([30.0, 20.0, 5.0, 2.0, -0.5, -0.3])

    def model(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(60), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.factor("f", (-0.5 * (values * (basis.T @ w) ** 2).sum() / len(y)).expand(len(y)))

    with pl.settings.using(small=1, oversampling=4):
        guide = pl.fit_laplace(model, torch.zeros(3), {"w": torch.zeros(60)}, structure=pl.LowRank(6), polish=False)
    assert_same(guide.precision.to_dense(), torch.eye(60) + (basis * values) @ basis.T, 1e-9)


def test_sketches_that_chose_their_own_columns_do_not_add_up():
    with pl.settings.using(small=1, oversampling=4):
        guide = fit(pl.LowRank(4, passes=2))
        x, y, z = data()
        with pytest.raises(pl.LaplaceError, match="passes=1"):
            pl.update(guide, (2 * x, y, z), on_not_a_mode="ignore")


def test_sketches_under_different_priors_do_not_add_up_and_say_why():
    with pl.settings.using(small=1, oversampling=4):
        narrow, wide = fit(pl.LowRank(4), 0.3), fit(pl.LowRank(4), 2.0)
    with pytest.raises(pl.LaplaceError, match="priors differ"):
        narrow.likelihood_sum.merged(wide.likelihood_sum)


# --- a structure from outside ---------------------------------------------------------------------


class Isotropic(Sum):
    """A constant times the identity: the mean of the curvature's diagonal."""

    def __init__(self, anchor, trace):
        self.anchor, self.trace = anchor, trace

    @classmethod
    def plan(cls, option, anchor, prior, exact=(), double=False):
        """Of any program."""
        return cls(anchor, torch.zeros(()))

    def add(self, columns):
        """The trace adds up."""
        self.trace = self.trace + columns.diagonal().sum()

    def merge(self, other):
        """The trace adds up."""
        self.trace = self.trace + other.trace

    @classmethod
    def weighted(cls, parts):
        """The trace adds up."""
        return cls(parts[0][0].anchor, torch.stack([part.trace * factor for part, factor in parts]).sum())

    def state(self):
        """One number."""
        return {"trace": self.trace}

    @classmethod
    def from_state(cls, state, anchor):
        """One number."""
        return cls(anchor, state["trace"])

    def times(self, vectors):
        """c v."""
        return vectors * self.trace / self.anchor.size

    def posterior(self, prior):
        """``c I + diag(H_prior)``."""
        return DiagBlock(self.trace / self.anchor.size + prior.diagonal)


@pytest.fixture
def isotropic(monkeypatch):
    """The toy structure, registered: one line."""
    monkeypatch.setitem(STRUCTURES, "isotropic", Isotropic)


@pytest.mark.usefixtures("isotropic")
def test_a_structure_of_ones_own_goes_all_the_way():
    x, y, z = data()
    full, guide = fit("full"), fit("isotropic")
    trace = full.precision.to_dense().trace() - 50
    expected = trace / 50 + 1
    assert_same(guide.precision.to_dense(), expected * torch.eye(50))
    evidence = full.log_evidence + 0.5 * float(full.precision.log_det()) - 25 * float(expected.log())
    assert guide.log_evidence == pytest.approx(evidence, rel=1e-12)
    draws = guide.sample_theta(4000)
    assert_close(draws.var(0).mean(), 1 / expected, rtol=0.05, atol=0)
    mean, covariance = pl.LinearizedPredictive(model_of(), guide).latent(x, y, z)["y"]
    (jacobian,) = torch.func.jacrev(lambda theta: logits(theta, x), argnums=(0,))(guide.theta)
    assert_same(mean - mean.logsumexp(-1, keepdim=True), logits(guide.theta, x).log_softmax(-1))
    assert_same(covariance, jacobian @ jacobian.mT / expected, 1e-9)
    first = fit("isotropic", batch=(x[:9], y[:9], z[:9]))
    updated = pl.update(first, (x[9:], y[9:], z[9:]), move=False, on_not_a_mode="ignore")
    assert_same(updated.precision.to_dense(), guide.precision.to_dense())
    assert updated.log_evidence == pytest.approx(guide.log_evidence, rel=1e-12)
    mapped = fit({"*2": "isotropic", "*": "kron"})
    assert mapped.precision.size == 50


@pytest.mark.usefixtures("isotropic")
def test_a_structure_of_ones_own_is_named_among_the_possible():
    with pytest.raises(pl.InvalidOption, match="'isotropic'"):
        fit("dense")


def logits(theta, x):
    w1, b1, w2, b2 = theta.split([24, 8, 16, 2])
    return torch.tanh(x @ w1.reshape(3, 8) + b1) @ w2.reshape(8, 2) + b2


# --- the pass -------------------------------------------------------------------------------------


def test_several_structures_take_one_pass():
    calls = []
    inner = model_of()

    def model(x, y, z):
        calls.append(len(x))
        return inner(x, y, z)

    def count(structure):
        program = Program.trace(model, as_data(data()), point())
        anchor = Anchor(program.start, torch.arange(50), program.latents)
        calls.clear()
        with torch.no_grad():
            sum_over_data(Loop(program, as_data(data())), anchor, CURVATURES["ggn"], structure)
        return len(calls)

    assert count(MAPPING) == count("diag") == 1


# --- the prior's form -----------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_a_kronecker_block_has_its_form_from_how_hyperparameters_enter(shared):
    """A scale for each output of the weight, and one of the bias: alike in value, an outer product by accident."""
    x, _, z = data()

    def model(x, z):
        scale = pyro.param(
            "scale", torch.ones(()) if shared else torch.ones(2, 1), constraint=dist.constraints.positive
        )
        of_bias = scale if shared else pyro.param("of_bias", torch.ones(2), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), scale).to_event(2))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), of_bias).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.nn.functional.linear(x, w, b), 0.5).to_event(1), obs=z)

    def fitted():
        values = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
        return pl.fit_laplace(model, (x, z), values, structure="kron", polish=False, on_not_a_mode="ignore")

    guide = fitted()
    assert [block.size for block in guide.precision.blocks] == ([8] if shared else [6, 2])
    store = pyro.get_param_store()
    store["scale"] = torch.full((), 0.3) if shared else torch.tensor([[0.3], [2.0]])
    other = fitted()
    found = guide.likelihood_sum.posterior(other.prior)
    assert [block.size for block in found.blocks] == [block.size for block in guide.precision.blocks]
    assert_same(found.to_dense(), other.precision.to_dense())
