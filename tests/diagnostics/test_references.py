"""The verdicts on ten posteriors with reference draws, and what importance resampling makes of them."""

import warnings
from functools import cache

import pytest
import torch
from programs.posteriordb import FOLDER, POSTERIORS, load

import pyro_laplace as pl

pytestmark = [
    pytest.mark.posteriordb,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference posteriors at {FOLDER}"),
]


@pytest.fixture(autouse=True)
def double(float64):
    """References are compared in double precision."""


@cache
def fitted(name: str) -> tuple:
    posterior = POSTERIORS[name]
    arguments = posterior.arguments(load(name)["data"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.LaplaceWarning)  # of two of them the mode is far from the mass
        return posterior.model, arguments, pl.fit_laplace(posterior.model, arguments, progress=False)


def largest_error(name: str, draws: dict, arguments: tuple) -> float:
    """Of the means, in reference standard deviations."""
    reference, named = load(name)["reference"], POSTERIORS[name].named_draws(draws, arguments)
    return max(abs(float(named[k].double().mean()) - reference[k]["mean"]) / reference[k]["sd"] for k in reference)


@pytest.mark.parametrize("name", sorted(POSTERIORS))
def test_is_trusted_where_its_error_is_small(name):
    model, arguments, guide = fitted(name)
    found = pl.diagnose(model, guide, arguments, progress=False)
    error = largest_error(name, guide.sample_posterior(20_000), arguments)
    assert (found.verdict == "trusted") == (error <= 0.3), (found, error)
    assert (found.verdict == "wrong") == (error > 0.3), (found, error)


@pytest.mark.parametrize("name", sorted(POSTERIORS))
def test_resampled_means_are_those_of_the_reference(name):
    model, arguments, guide = fitted(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.LaplaceWarning)  # it may say that it is not exact
        draws = pl.importance_resample(model, guide, arguments, 20_000, progress=False)
    if draws.exact:
        assert largest_error(name, draws, arguments) < 0.05 + 3 / draws.ess**0.5
    assert draws.exact or name.startswith("gp_pois_regr")
    assert torch.tensor([draws.log_evidence, draws.log_evidence_error]).isfinite().all()
