"""Toy data: shapes, seeds, and that they are what their formulas say."""

import inspect

import pytest
import scipy.stats
import torch
from checks import assert_says

import pyro_laplace as pl

SETS = [getattr(pl.datasets, name) for name in pl.datasets.__all__]
MANY = 6000


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_a_seed_makes_the_same_data_and_leaves_the_global_generator_alone(make):
    before = torch.get_rng_state()
    x, y = make()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = make()
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert not torch.equal(x, make(seed=1)[0])
    assert x.shape == (inspect.signature(make).parameters["num_data"].default, x.shape[1])
    assert y.shape == (len(x),)
    assert len(make(12)[0]) == 12


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_data_are_of_the_default_dtype_and_the_same_in_both(make, float64):
    wide, y = make()
    assert wide.dtype == torch.float64
    assert not y.is_floating_point() or y.dtype == torch.float64
    torch.set_default_dtype(torch.float32)
    narrow, _ = make()
    torch.set_default_dtype(torch.float64)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "number"), [(pl.datasets.linear, 7), (pl.datasets.nonlinear, 6), (pl.datasets.gap, 0)]
)
def test_a_number_that_does_not_divide_is_refused(make, number):
    with pytest.raises(pl.InvalidOption) as error:
        make(number)
    assert_says(error, f"num_data={number}", "multiple of")


def test_one_class_is_refused():
    with pytest.raises(pl.InvalidOption) as error:
        pl.datasets.multiclass(num_classes=1)
    assert_says(error, "num_classes=1", "at least 2")


def is_uniform(values: torch.Tensor, low: float, high: float) -> bool:
    """By the test of Kolmogorov and Smirnov."""
    return scipy.stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-3


def is_normal(values: torch.Tensor) -> bool:
    return scipy.stats.kstest(values.numpy(), "norm").pvalue > 1e-3


def test_classes_that_a_line_divides():
    x, y = pl.datasets.linear(MANY)
    assert y.mean() == 0.5
    assert torch.equal(y.bool(), x.sum(-1) > 0)
    assert torch.equal(y.bool()[:, None].expand_as(x), x > 0)
    assert is_uniform(x.abs().flatten(), 0.5, 5.0)


def test_classes_in_opposite_quadrants():
    x, y = pl.datasets.nonlinear(MANY)
    assert torch.equal(y.bool(), x[:, 0] * x[:, 1] > 0)
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert int((x.sign() == torch.tensor(signs)).all(-1).sum()) == MANY // 4
    assert is_uniform(x.abs().flatten(), 0.5, 5.0)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_clouds_around_a_polygon(classes):
    x, y = pl.datasets.multiclass(classes * 1000, num_classes=classes)
    assert y.bincount().tolist() == [1000] * classes
    centres = torch.stack([x[y == k].mean(0) for k in range(classes)])
    assert centres.norm(dim=-1).allclose(torch.tensor(3.0), atol=0.15)
    turned = torch.polar(torch.ones(classes), -2 * torch.pi * torch.arange(classes) / classes)
    back = torch.view_as_real(torch.view_as_complex(x) * turned[y])
    assert is_normal(back[:, 0] - 3)
    assert is_normal(back[:, 1])


def test_a_wave_with_a_gap():
    x, y = (part.flatten() for part in pl.datasets.gap(MANY, noise=0.2))
    assert (x.diff() >= 0).all()
    assert is_uniform(x[x > 0], 0.9, 2.5)
    assert is_uniform(-x[x < 0], 0.9, 2.5)
    assert is_normal((y - (2 * x).sin()) / 0.2)


def test_counts():
    x, y = (part.flatten() for part in pl.datasets.counts(MANY))
    assert is_uniform(x, -4.0, 4.0)
    assert torch.equal(y, y.round())
    rate = (1.5 + 1.5 * x.sin()).exp()
    pearson = ((y - rate).square() / rate).sum()  # of mean n and variance n (2 + 1 / rate)
    assert abs(float(pearson) - MANY) < 4 * float((2 + 1 / rate).sum().sqrt())
    assert abs(float((y - rate).sum())) < 4 * float(rate.sum().sqrt())


def test_noise_that_depends_on_the_input():
    x, y = (part.flatten() for part in pl.datasets.heteroscedastic(MANY))
    assert is_uniform(x, -4.0, 4.0)
    assert is_normal((y - 0.5 * x) / (x.sin() - 1).exp())


def test_a_set_is_one_batch_of_every_fit():
    guide = pl.fit_laplace(
        pl.bayesianize(torch.nn.Linear(2, 1), pl.nn.Isotropic(1.0), pl.nn.BinaryClassification()), pl.datasets.linear()
    )
    assert guide.mode.is_mode
