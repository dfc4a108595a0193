"""A posterior predicts with its own program: one without some of its sites is refused, by their names."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl

X = torch.linspace(-1.0, 1.0, 9)


def one(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)


def other(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(100 * a + x, 1.0), obs=y)


@pytest.fixture(params=["one mode", "a mixture"])
def loaded(request, tmp_path):
    """A posterior of `one`, read for `other` without data."""
    points = [{"a": torch.zeros(()), "b": torch.tensor(start)} for start in (-1.0, 1.0)]
    start = None if request.param == "one mode" else points
    guide = pl.fit_laplace(one, (X, X), start, polish=True, progress=False)
    pl.save(guide, tmp_path / "guide")
    return pl.load(tmp_path / "guide", other)


def test_another_program_than_the_posteriors_is_refused(loaded):
    refused = {
        "Predictive": lambda: pl.Predictive(other, guide=loaded, num_samples=5)(X),
        "distributions": lambda: pl.LinearizedPredictive(other, loaded)(X),
        "moments": lambda: pl.LinearizedPredictive(other, loaded).latent(X),
        "with gradients": lambda: pl.LinearizedPredictive(other, loaded, differentiable=True)(X),
        "draws": lambda: pl.LinearizedPredictive(other, loaded).sample(3)(X),
    }
    for name, call in refused.items():
        with pytest.raises(pl.UnsupportedProgram, match=r"\['b'\].*does not sample"):
            raise AssertionError(f"{name} gave {call()}")


def test_a_last_layer_posterior_of_another_program_is_refused():
    guide = pl.fit_laplace(one, (X, X), subset=["a"], progress=False)
    with pytest.raises(pl.UnsupportedProgram, match=r"\['b'\]"):
        pl.LinearizedPredictive(other, guide)(X)


def test_what_is_legitimate_still_predicts(loaded):
    """Draws by name, more of them than the program has sites; a site that is conditioned on; the linearised program."""
    draws = loaded.sample_posterior(20)
    assert pl.Predictive(other, posterior_samples=draws)(X)["y"].shape == (20, 9)
    held = pyro.poutine.condition(one, data={"b": torch.tensor(0.0)})
    assert pl.Predictive(held, guide=loaded, num_samples=5)(X)["y"].shape == (5, 9)
    assert pl.Predictive(pl.linearize(one, loaded), guide=loaded, num_samples=5)(X)["y"].shape == (5, 9)


def test_predictions_are_no_posterior_to_save(tmp_path):
    guide = pl.fit_laplace(one, (X, X), progress=False)
    predictive = pl.LinearizedPredictive(one, guide)
    calibrated = pl.calibrate(predictive, (X, X))
    with pytest.raises(pl.InvalidOption, match=r"y: scale .*pl.save\(guide, path\)") as refused:
        pl.save(calibrated, tmp_path / "a")
    assert "held-out data" in str(refused.value)
    with pytest.raises(pl.InvalidOption, match="LinearizedPredictive made of one: save its guide"):
        pl.save(predictive, tmp_path / "a")
