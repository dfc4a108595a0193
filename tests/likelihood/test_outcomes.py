"""What the data of a distribution are: numbers or classes, registered or not."""

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_laplace.likelihood.mixture import DistributionMixture, FunctionMixture
from pyro_laplace.likelihood.outcome import Outcome

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])


class Own(dist.Categorical):
    """A type with a density of its own, of which no family is registered."""

    def log_prob(self, value):
        return super().log_prob(value) / 2


@pytest.mark.parametrize("kind", [dist.Categorical, dist.OneHotCategorical, Own])
def test_classes(kind):
    outcome = Outcome.of(kind(logits=LOGITS))
    assert outcome.is_class
    assert_close(outcome.expected, LOGITS.softmax(-1))
    labels = torch.tensor([0, 2])
    observed = torch.nn.functional.one_hot(labels, 3) if kind is dist.OneHotCategorical else labels
    assert outcome.hits(outcome.expected, observed).tolist() == [True, False]


def test_expanded_and_ordered_classes():
    cuts = torch.tensor([-1.0, 1.0])
    ordered = dist.OrderedLogistic(torch.tensor([-3.0, 3.0]), cuts)
    assert Outcome.of(ordered).is_class
    assert Outcome.of(ordered).hits(ordered.probs, torch.tensor([0, 2])).all()
    wrapped = dist.Categorical(logits=LOGITS).expand((4, 2)).to_event(1)
    assert Outcome.of(wrapped).expected.shape == (4, 2, 3)


def test_numbers():
    assert not Outcome.of(dist.Multinomial(5, logits=LOGITS)).is_class
    assert_close(Outcome.of(dist.Multinomial(5, logits=LOGITS)).expected, 5 * LOGITS.softmax(-1))
    log_normal = dist.LogNormal(torch.zeros(3), 1.0).to_event(1)
    assert_close(Outcome.of(log_normal).expected, log_normal.mean)
    assert Outcome.of(dist.ImproperUniform(dist.constraints.real, (), ())).expected is None


def test_the_dtype_of_data():
    whole = torch.tensor([0, 1])
    for fn in (
        dist.Bernoulli(logits=torch.zeros(2).double()),
        dist.Poisson(torch.ones(2).double()).to_event(1),
        dist.ZeroInflatedPoisson(torch.ones(2).double(), gate=torch.tensor(0.5).double()),
    ):
        assert Outcome.of(fn).as_data(whole).dtype == torch.float64
    assert Outcome.of(dist.Categorical(logits=LOGITS)).as_data(whole) is whole


@pytest.mark.parametrize("probs", [[0.2, 0.5, 0.3], [1e-30, 1.0, 1e-12], [0.25, 1e-20, 0.25, 0.5], [0.3, 0.7]])
def test_probabilities_of_ordered_classes_are_those_of_cutpoints(probs):
    """Differences of logits of their sums, which the formula does not take: small ones would be lost."""
    family = Outcome.of(dist.OrderedLogistic(torch.zeros(()), torch.zeros(1))).family
    log_p = torch.tensor(probs, dtype=torch.float64).log().log_softmax(-1)
    assert_close(family.log_classes(family.of_log_classes(log_p)), log_p, rtol=1e-10, atol=1e-12)


def test_mixtures_have_probabilities_of_classes_alone():
    logits = torch.randn(5, 4, 2, 3)  # draws, data, entries, classes
    over_draws = FunctionMixture(logits, lambda eta: dist.Categorical(logits=eta).to_event(1))
    assert_close(over_draws.probs, logits.softmax(-1).mean(0))
    both = DistributionMixture(torch.tensor([0.25, 0.75]), [over_draws, dist.Categorical(logits=logits[0]).to_event(1)])
    assert_close(both.probs, 0.25 * over_draws.probs + 0.75 * logits[0].softmax(-1))
    numbers = FunctionMixture(torch.randn(5, 4), lambda eta: dist.Normal(eta, 1.0))
    with pytest.raises(AttributeError, match="no classes"):
        numbers.probs  # noqa: B018
