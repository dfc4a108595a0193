"""What a newcomer trips over: each ends in the right posterior, or in an error that says what to do."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

GROUP = torch.arange(3).repeat(10)
Y = torch.sin(torch.arange(30.0)) + GROUP


def groups(group, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(mu, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, s), obs=y)


def centred_schools():
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, tau)), errors), obs=effects)


def test_kron_of_a_program_without_layers_has_the_full_blocks():
    full = pl.fit_laplace(groups, (GROUP, Y), progress=False)
    kron = pl.fit_laplace(groups, (GROUP, Y), structure="kron", progress=False)
    effect = full.layout["effect"]
    expected = full.precision.to_dense()[effect, effect]
    torch.testing.assert_close(kron.precision.to_dense()[effect, effect], expected, rtol=1e-6, atol=1e-6)


def test_a_collapsing_scale_is_told_to_be_non_centred():
    with pytest.raises(pl.NotAMode, match=r"non-centred form: x = loc \+ scale \* z"):
        pl.fit_laplace(centred_schools, (), progress=False)


def test_a_value_outside_its_support_is_named():
    with pytest.raises(pl.UnsupportedProgram, match=r"'s' has a value outside its support .*-1"):
        pl.fit_laplace(regression, (Y, Y), {"w": torch.tensor(0.0), "s": torch.tensor(-1.0)})


def test_a_list_is_told_from_a_tuple():
    with pytest.raises(pl.UnsupportedProgram, match=r"A list is a sequence of batches; one batch is a tuple \(x, y\)"):
        pl.fit_laplace(regression, [Y, Y], progress=False)


@pytest.mark.parametrize("options", [{"subset": "nothing"}, {"structure": "kron", "curvature": "hessian"}])
def test_options_are_refused_before_anything_is_trained(options, monkeypatch):
    monkeypatch.setattr(
        "pyro_laplace.posterior.request.find_mode", lambda *args, **kwargs: pytest.fail("trained first")
    )
    with pytest.raises(pl.InvalidOption):
        pl.fit_laplace(regression, (Y, Y), progress=False, **options)


def test_the_evidence_is_part_of_a_guides_state():
    first = pl.fit_laplace(regression, (Y, Y.flip(0)), progress=False)
    second = pl.fit_laplace(regression, (Y, Y.flip(0) + 1.0), progress=False)
    assert first.log_evidence != pytest.approx(second.log_evidence, abs=0.1)
    second.load_state_dict(first.state_dict())
    assert second.log_evidence == first.log_evidence


def test_params_of_the_model_need_not_exist_before():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        noise = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, noise), obs=y)

    guide = pl.fit_laplace(model, (Y, Y), {"w": torch.tensor(0.0)}, progress=False)
    assert guide.mode.is_mode
    assert "noise" not in pyro.get_param_store()
