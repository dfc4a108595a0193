"""`pl.settings`: every size and tolerance has one name and a checked value, and is read when it is used."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta

import pyro_laplace as pl
from pyro_laplace._memory import refuse_too_large
from pyro_laplace.settings import Settings, settings


@pytest.fixture(autouse=True)
def as_they_were():
    before = dict(vars(settings))
    yield
    assert vars(settings) == before


def straight_line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def some_data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(20, 2)
    return x, x @ torch.tensor([1.0, -1.0])


def test_they_are_one_object_that_users_see():
    assert pl.settings is settings
    assert isinstance(pl.settings, Settings)
    assert pl.settings.small == 200


def test_one_that_is_set_stays_until_it_is_set_again():
    pl.settings.small = 50
    assert settings.small == 50
    pl.settings.small = 200


def test_using_restores_all_of_them():
    with pl.settings.using(small=50, mode_decrement=0.2) as inside:
        assert inside is pl.settings
        assert (pl.settings.small, pl.settings.mode_decrement) == (50, 0.2)
        pl.settings.patience = 7
    assert (pl.settings.small, pl.settings.mode_decrement, pl.settings.patience) == (200, 0.1, 3)


def test_using_restores_them_after_an_exception():
    with pytest.raises(RuntimeError, match="the user's"), pl.settings.using(small=50):
        raise RuntimeError("the user's")
    assert pl.settings.small == 200


def test_using_within_using_restores_what_was_there():
    with pl.settings.using(small=50):
        with pl.settings.using(small=40):
            assert pl.settings.small == 40
        assert pl.settings.small == 50


def test_a_wrong_value_among_right_ones_sets_none():
    with pytest.raises(pl.InvalidOption, match="block_bytes"), pl.settings.using(small=50, block_bytes=-1):
        pytest.fail("entered")
    assert pl.settings.small == 200


@pytest.mark.parametrize("name", ["smal", "_small", "using"])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(pl.InvalidOption, match=rf"no '{name}'.*, small,"):
        setattr(pl.settings, name, 1)
    with pytest.raises(pl.InvalidOption, match=rf"no '{name}'"), pl.settings.using(**{name: 1}):
        pytest.fail("entered")


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "200", None, torch.tensor(3)])
def test_a_number_of_things_is_a_positive_whole_number(value):
    with pytest.raises(pl.InvalidOption, match=r"small=.*positive whole number"):
        pl.settings.small = value


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf"), True, "0.1", None])
def test_a_tolerance_is_a_positive_finite_number(value):
    with pytest.raises(pl.InvalidOption, match=r"mode_decrement=.*positive number"):
        pl.settings.mode_decrement = value


def test_a_tolerance_may_be_a_whole_number():
    with pl.settings.using(mode_decrement=1):
        assert pl.settings.mode_decrement == 1


def test_each_has_a_default_that_it_would_take():
    with pl.settings.using(**{field.name: field.default for field in dataclasses.fields(Settings)}):
        pass


def test_block_bytes_refuses_an_allocation_and_says_the_limit():
    refuse_too_large(1024, 8, "a block", "take another")
    with pl.settings.using(block_bytes=8 * 1024 - 1), pytest.raises(pl.TooLarge, match="a block would take"):
        refuse_too_large(1024, 8, "a block", "take another")
    with pytest.raises(pl.TooLarge, match=r"16\.0 GiB \(limit 8 GiB\): take another"):
        refuse_too_large(2**31, 8, "a block", "take another")


def test_block_bytes_refuses_a_dense_posterior():
    guide = {"slope": torch.zeros(2)}
    with pl.settings.using(block_bytes=8), pytest.raises(pl.TooLarge):
        pl.fit_laplace(straight_line, some_data(), guide, polish=False)


def test_small_switches_the_search_from_newtons_method_to_training(monkeypatch):
    trained = []
    monkeypatch.setattr("pyro_laplace.mode.fit_map.train", lambda *args, **options: trained.append(options))
    monkeypatch.setattr("pyro_laplace.mode.fit_map._settle", lambda *args: None)
    monkeypatch.setattr("pyro_laplace.mode.fit_map._rises", lambda *args: None)  # of a guide that was not trained
    assert isinstance(pl.fit_map(straight_line, some_data(), progress=False), AutoDelta)
    assert not trained
    with pl.settings.using(small=1):
        pl.fit_map(straight_line, some_data(), progress=False)
    assert [options["num_steps"] for options in trained] == [5000]


def test_mode_decrement_is_what_counts_as_a_mode():
    off = {"slope": torch.tensor([1.0, -0.5])}
    fit = {"map_guide": off, "polish": False}
    with pytest.warns(pl.NotAModeWarning):
        pl.fit_laplace(straight_line, some_data(), **fit)
    with pl.settings.using(mode_decrement=1e3):
        assert pl.fit_laplace(straight_line, some_data(), **fit).mode.is_mode


def test_start_draws_are_those_of_a_start():
    pyro.set_rng_seed(1)
    expected = dist.Normal(0.0, 1.0).sample((3,)).median()
    pyro.set_rng_seed(1)
    with pl.settings.using(start_draws=3):
        assert pl.init_to_start({"name": "x", "fn": dist.Normal(0.0, 1.0)}) == expected


def test_pass_elements_divide_a_pass_and_change_no_result():
    from pyro_laplace._autodiff import hessian

    theta = torch.randn(12, dtype=torch.float64)

    def fn(theta):
        return (theta.cumsum(0).sin() * theta).sum()

    whole = hessian(fn, theta)
    with pl.settings.using(pass_elements=1):
        torch.testing.assert_close(hessian(fn, theta), whole)
