"""Random small programs: `full` precisions against dense `torch.func` derivatives of the log joint, to 1e-8.

A program is drawn by hypothesis piece by piece: its latent sites and their priors, what the linear predictor makes of
them, the distributions and links of its observed sites, the plates, scales and masks around these. The oracle knows
nothing of any of this: it differentiates the traced program, and takes Fisher informations from a table of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from oracles.naive import FlatProgram, datum_weights, unvalidated
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus
from torch.special import polygamma
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

ROWS, COLUMNS = 6, 2
NUM_OBS = ROWS * COLUMNS

# --- the pieces -----------------------------------------------------------------------------------

Prior = Callable[[dict[str, Tensor]], Any]
Effect = Callable[[Tensor, Tensor], Tensor]
"""Of the covariates [n, 3] and the site's value on the linear predictor [n]."""


def _vector(fn: Any) -> Any:
    return fn.to_event(1)


def _scale(seen: dict[str, Tensor]) -> Tensor:
    """A scale that an earlier site sets, if there is one: a hierarchy."""
    return next((value.sum() for name, value in seen.items() if name.startswith("positive")), torch.tensor(1.0))


GROUP = torch.arange(NUM_OBS) % 3
SITES: dict[str, tuple[Prior, Effect]] = {
    "weights": (lambda seen: _vector(dist.Normal(torch.zeros(3), 1.0)), lambda x, v: x @ v),
    "hidden": (
        lambda seen: dist.Normal(torch.zeros(3, 2), 0.7).to_event(2),
        lambda x, v: torch.tanh(x @ v) @ torch.tensor([1.0, -0.5]),
    ),
    "heavy": (lambda seen: dist.StudentT(5.0, 0.2, 1.0), lambda x, v: v.expand(len(x))),
    "logistic": (lambda seen: _vector(dist.Logistic(torch.zeros(2), 0.5)), lambda x, v: x[:, :2] @ v),
    "positive": (lambda seen: dist.Gamma(3.0, 2.0), lambda x, v: 0.3 * x[:, 0] * v),
    "positives": (lambda seen: _vector(dist.LogNormal(torch.zeros(2), 0.5)), lambda x, v: 0.3 * x[:, 1:] @ v.log()),
    "interval": (lambda seen: dist.Uniform(-1.0, 2.0), lambda x, v: x[:, 1] * v),
    "unit": (lambda seen: dist.Beta(2.0, 3.0), lambda x, v: 0.5 * v.expand(len(x))),
    "simplex": (lambda seen: dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])), lambda x, v: x @ v),
    "correlation": (lambda seen: dist.LKJCholesky(3, 2.0), lambda x, v: 0.5 * x @ v[2]),
    "effects": (lambda seen: _vector(dist.Normal(torch.zeros(3), _scale(seen))), lambda x, v: v[GROUP]),
}

Likelihood = Callable[[Tensor, Tensor], Any]
"""Of the linear predictor, and of a positive number that may be latent."""


def _two_classes(eta: Tensor) -> Tensor:
    return torch.stack([eta, -0.5 * eta, torch.zeros_like(eta)], -1)


FAMILIES: dict[str, Likelihood] = {
    "Normal": lambda eta, s: dist.Normal(eta, s),
    "heteroscedastic Normal": lambda eta, s: dist.Normal(eta, s * softplus(eta)),
    "LogNormal": lambda eta, s: dist.LogNormal(eta, s),
    "StudentT": lambda eta, s: dist.StudentT(4.0, eta, s),
    "Bernoulli logits": lambda eta, s: dist.Bernoulli(logits=eta),
    "Bernoulli probs": lambda eta, s: dist.Bernoulli(probs=torch.sigmoid(s * eta)),
    "Binomial": lambda eta, s: dist.Binomial(5, logits=eta),
    "Poisson": lambda eta, s: dist.Poisson(eta.exp()),
    "Poisson softplus": lambda eta, s: dist.Poisson(s + softplus(eta)),
    "NegativeBinomial": lambda eta, s: dist.NegativeBinomial(3.0, logits=eta - 1.0),
    "Geometric": lambda eta, s: dist.Geometric(probs=torch.sigmoid(eta)),
    "Exponential": lambda eta, s: dist.Exponential(s * eta.exp()),
    "Gamma": lambda eta, s: dist.Gamma(1.0 + s, eta.exp()),
    "Beta": lambda eta, s: dist.Beta(1.0 + softplus(eta), 1.0 + s),
    "Categorical": lambda eta, s: dist.Categorical(logits=_two_classes(eta)),
}

PLATES = {
    "plate": [("rows", NUM_OBS, -1)],
    "nested": [("rows", ROWS, -2), ("columns", COLUMNS, -1)],
    "left": [("rows", NUM_OBS, -2)],
    "event": [],
}
"""Name, size and axis of each plate around the data."""


@dataclass(frozen=True)
class Observed:
    """An observed site: a family, what is around it, and whether its positive number is latent."""

    family: str
    layout: str
    scale: float | None
    mask: bool
    latent_number: bool


@cache
def covariates(seed: int) -> Tensor:
    """[n, 3]; made before anything is vectorised."""
    return torch.randn(NUM_OBS, 3, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Generated:
    """A drawn program; it is called without arguments, and holds its data."""

    sites: tuple[str, ...]
    observed: tuple[Observed, ...]
    factor: bool
    seed: int
    y: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def __call__(self) -> None:
        x, eta, seen = covariates(self.seed), torch.zeros(NUM_OBS), {}
        for name in self.sites:
            prior, effect = SITES[name]
            seen[name] = pyro.sample(name, prior(seen))
            eta = eta + effect(x, seen[name])
        number = (
            pyro.sample("number", dist.LogNormal(0.0, 0.3)) if any(o.latent_number for o in self.observed) else None
        )
        for i, site in enumerate(self.observed):
            self._observe(f"y{i}", site, eta, number if site.latent_number else torch.tensor(0.8))
        if self.factor:
            with pyro.plate("factors", NUM_OBS):
                pyro.factor("factor", -torch.cosh(0.3 * eta))

    def _observe(self, name: str, site: Observed, eta: Tensor, number: Any) -> None:
        y, mask = self.y.get(name), torch.arange(NUM_OBS) % 4 != 1
        shape = {"nested": (ROWS, COLUMNS), "left": (NUM_OBS, 1)}.get(site.layout, (NUM_OBS,))
        fn = FAMILIES[site.family](eta.reshape(shape), number)
        mask = mask.reshape(shape)
        if site.layout == "event":
            fn, mask = fn.to_event(1), torch.tensor(True)
        plates = [pyro.plate(f"{axis} {name}", size, dim=dim) for axis, size, dim in PLATES[site.layout]]
        handlers = [poutine.scale(scale=site.scale or 1.0), *([poutine.mask(mask=mask)] if site.mask else []), *plates]
        self._sample(name, fn, y, handlers)

    def _sample(self, name: str, fn: Any, y: Tensor | None, handlers: list[Any]) -> None:
        if handlers:
            with handlers[0]:
                self._sample(name, fn, y, handlers[1:])
        else:
            pyro.sample(name, fn, obs=y)

    def with_data(self) -> "Generated":
        """The program with data drawn from itself."""
        with pyro.poutine.block(), torch.no_grad():
            pyro.set_rng_seed(self.seed)
            nodes = poutine.trace(self).get_trace().nodes
        names = [f"y{i}" for i in range(len(self.observed))]
        return Generated(self.sites, self.observed, self.factor, self.seed, {n: nodes[n]["value"] for n in names})


observed_sites = st.builds(
    Observed,
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(sorted(PLATES)),
    st.sampled_from([None, 0.3, 2.0]),
    st.booleans(),
    st.booleans(),
)

programs = st.builds(
    Generated,
    st.lists(st.sampled_from(sorted(SITES)), min_size=1, max_size=3, unique=True).map(tuple),
    st.lists(observed_sites, min_size=1, max_size=2).map(tuple),
    st.booleans(),
    st.integers(0, 1000),
)

# --- the oracle -----------------------------------------------------------------------------------


def _bare(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def parameters(fn: Distribution) -> Tensor:
    """What the informations below are in, [n, c]; the entries of an event count as data."""
    base: Any = _bare(fn)
    match base:
        case dist.LogNormal() | dist.Normal() | dist.StudentT():
            found = (base.loc, base.scale)
        case dist.Gamma():
            found = (base.concentration, base.rate)
        case dist.Beta():
            found = (base.concentration1, base.concentration0)
        case dist.Bernoulli() | dist.Geometric():
            found = (base.probs,)
        case dist.Binomial() | dist.NegativeBinomial():
            found = (base.logits,)
        case dist.Categorical():
            return base.logits.reshape(-1, base.logits.shape[-1])
        case _:
            found = (base.rate,)
    return torch.stack([each.expand(base.batch_shape).reshape(-1) for each in found], -1)


def information(fn: Distribution) -> Tensor:
    """Fisher information [n, c, c]."""
    base: Any = _bare(fn)
    p = parameters(fn).detach()
    a, b = p[:, 0], p[:, -1]
    match base:
        case dist.LogNormal() | dist.Normal():
            return torch.diag_embed(torch.stack([b**-2, 2 * b**-2], -1))
        case dist.StudentT():
            df = 4.0
            return torch.diag_embed(torch.stack([(df + 1) / (df + 3) / b**2, 2 * df / (df + 3) / b**2], -1))
        case dist.Gamma():
            return torch.stack([torch.stack([polygamma(1, a), -1 / b], -1), torch.stack([-1 / b, a / b**2], -1)], -2)
        case dist.Beta():
            both = polygamma(1, a + b)
            return torch.diag_embed(torch.stack([polygamma(1, a), polygamma(1, b)], -1)) - both[:, None, None]
        case dist.Bernoulli():
            found = 1 / (a * (1 - a))
        case dist.Geometric():
            found = 1 / (a**2 * (1 - a))
        case dist.Binomial():
            found = 5 * torch.sigmoid(a) * torch.sigmoid(-a)
        case dist.NegativeBinomial():
            found = 3 * torch.sigmoid(a)
        case dist.Poisson():
            found = 1 / a
        case dist.Exponential():
            found = a**-2
        case dist.Categorical():
            probs = torch.softmax(p, -1)
            return torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
        case _:
            raise NotImplementedError(type(base).__name__)
    return found[:, None, None]


def weights(node: dict) -> Tensor:
    """What each row of `parameters` is multiplied by."""
    fn, count = node["fn"], len(parameters(node["fn"]))
    per_datum = datum_weights(node, fn.batch_shape.numel())
    return per_datum.repeat_interleave(count // len(per_datum))


def naive_ggn(flat: FlatProgram, program: Generated, theta: Tensor) -> Tensor:
    """``sum_n J_n' I_n J_n``, plus minus the Hessian of everything else."""

    def rest(t: Tensor) -> Tensor:
        with unvalidated():
            trace, log_det = flat.trace(t)
            return trace.log_prob_sum(lambda name, site: name not in program.y) + log_det

    total = -torch.func.hessian(rest)(theta)
    for name in program.y:
        with unvalidated():
            node = flat.site(theta, name)

            def eta(t: Tensor, name: str = name) -> Tensor:
                with unvalidated():
                    return parameters(flat.site(t, name)["fn"])

            jac_ncp = torch.func.jacrev(eta)(theta)
            total = total + torch.einsum("n,ncp,ncd,ndq->pq", weights(node), jac_ncp, information(node["fn"]), jac_ncp)
    return total


# --- the tests ------------------------------------------------------------------------------------


def at_mode(program: Generated) -> tuple[Generated, FlatProgram, Tensor]:
    program = program.with_data()
    with unvalidated():
        flat = FlatProgram(program)
        return program, flat, flat.mode(max_iter=40)


def is_positive_definite(matrix: Tensor) -> bool:
    scale = matrix.diagonal().abs().sqrt()
    return bool(torch.linalg.eigvalsh(matrix / scale / scale[:, None]).min() > 1e-4)


def fitted(program: Generated, flat: FlatProgram, theta: Tensor, curvature: str) -> Tensor:
    pyro.clear_param_store()
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": curvature}
    return pl.fit_laplace(program, (), flat.constrain(theta)[0], **options).precision.to_dense()


def close(actual: Tensor, expected: Tensor) -> None:
    scale = expected.diagonal().sqrt()
    assert_close(actual / scale / scale[:, None], expected / scale / scale[:, None], rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:curvature='ggn' is the information that data of this model hold")
@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@settings(max_examples=16, phases=[Phase.explicit, Phase.generate])
@given(programs)
def test_hessian_and_gauss_newton_of_generated_programs(program):
    program, flat, theta = at_mode(program)
    hessian = flat.hessian(theta)
    ggn = naive_ggn(flat, program, theta)
    assume(is_positive_definite(hessian) or is_positive_definite(ggn))
    if is_positive_definite(hessian):
        close(fitted(program, flat, theta, "hessian"), hessian)
    if is_positive_definite(ggn):
        close(fitted(program, flat, theta, "ggn"), ggn)
