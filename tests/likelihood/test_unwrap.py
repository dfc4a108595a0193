"""Distributions seen through their wrappers."""

import pyro.distributions as dist
import torch
from torch.testing import assert_close

from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.unwrap import core, innermost, innermost_unmasked, parameter_of, peel, tensors_of, where_loc_is

NORMAL = dist.Normal(torch.zeros(3, 2), torch.ones(3, 2))


def test_wrappers_are_peeled_from_the_outside():
    masked = NORMAL.mask(torch.ones(3, 2, dtype=torch.bool))
    wrapped = masked.to_event(1)
    assert list(peel(wrapped)) == [wrapped, masked, NORMAL]
    assert list(peel(wrapped, masks=False)) == [wrapped, masked]
    assert innermost(wrapped) is NORMAL
    assert innermost_unmasked(wrapped) is masked
    assert innermost_unmasked(NORMAL.to_event(2)) is NORMAL


def test_expansion_is_a_wrapper():
    base = dist.ZeroInflatedPoisson(torch.tensor(2.0), gate=torch.tensor(0.1))
    expanded = dist.ExpandedDistribution(base, torch.Size([4]))
    assert innermost(expanded) is base
    assert type(core(expanded)) is dist.Poisson


def test_a_transform_is_no_wrapper():
    log_normal = dist.LogNormal(torch.zeros(3), 1.0).to_event(1)
    assert isinstance(innermost(log_normal), dist.LogNormal)
    assert isinstance(core(log_normal), torch.distributions.Normal)


def test_the_tensors_that_a_distribution_is_made_of():
    rate = torch.tensor([1.0, 2.0])
    wrapped = dist.Poisson(rate).to_event(1)
    assert [id(each) for each in tensors_of(wrapped)] == [id(rate)]
    assert parameter_of(wrapped) is rate
    logits = torch.tensor([0.5], dtype=torch.float64)
    assert parameter_of(dist.Bernoulli(logits=logits)).dtype == torch.float64
    assert parameter_of(dist.Bernoulli(logits=logits)) is logits


def test_where_loc_and_scale_belong():
    y = torch.tensor([0.5, 2.0, 3.0])
    base, log_y = where_loc_is(dist.LogNormal(torch.zeros(3), torch.ones(3)).to_event(1), y)
    assert isinstance(base, torch.distributions.Normal)
    assert_close(log_y, y.log())
    gumbel = dist.Gumbel(torch.zeros(3), torch.ones(3))
    assert where_loc_is(gumbel, y) == (gumbel, y)


def test_a_likelihood_sees_through_all_of_them():
    likelihood = likelihood_of(dist.LogNormal(torch.zeros(3, 2), 1.0).mask(torch.tensor(True)).to_event(1))
    assert isinstance(likelihood.base, torch.distributions.Normal)
    assert likelihood.event == (2,)
