"""A loader that gives other data each pass: that is said, and no longer training is asked for."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

N = 100


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def data():
    torch.manual_seed(2)
    x = torch.randn(N, 2)
    return TensorDataset(x, x @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(N))


class Augmented(Dataset):
    """Noise on each row, anew each time."""

    def __init__(self):
        self.rows = data()

    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = self.rows[i]
        return x + 0.5 * torch.randn(2), y


OTHERS = {
    "drop_last": (lambda: DataLoader(data(), 32, shuffle=True, drop_last=True), "drop_last leaves out 4 of 100"),
    "replacement": (
        lambda: DataLoader(data(), 25, sampler=RandomSampler(data(), replacement=True)),
        "RandomSampler draws with replacement",
    ),
    "weighted": (
        lambda: DataLoader(data(), 25, sampler=WeightedRandomSampler(torch.ones(N), N)),
        "WeightedRandomSampler draws with replacement",
    ),
    "a part": (lambda: DataLoader(data(), 25, sampler=RandomSampler(data(), num_samples=50)), "draws 50 of 100"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_loaders_that_say_so(kind):
    make, reason = OTHERS[kind]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.fit_laplace(model, make(), progress=False)
    said = [str(each.message) for each in caught if issubclass(each.category, pl.LaplaceWarning)]
    assert reason in said[0], said
    assert "other data" in said[0]
    assert not any("longer" in each for each in said), said


@pytest.mark.parametrize("given", [False, True])
def test_data_that_are_augmented(given):
    """No option says so: two passes do."""
    start = {"w": torch.tensor([1.0, -0.5])} if given else None
    with pytest.raises(pl.NotAMode) as caught:
        pl.fit_laplace(model, DataLoader(Augmented(), 25), start, on_not_a_mode="raise", progress=False)
    assert_says(caught, "the same data at each pass", "augments", "log joints of")
    assert "longer" not in str(caught.value)


LIKE = {
    "shuffled": lambda: DataLoader(data(), 32, shuffle=True),
    "drops nothing": lambda: DataLoader(data(), 25, shuffle=True, drop_last=True),
    "the same left out": lambda: DataLoader(data(), 32, drop_last=True),
}


@pytest.mark.parametrize("kind", LIKE)
def test_loaders_of_the_same_data(kind):
    """No word of other data, whether at the mode or not."""
    guide = pl.fit_laplace(model, LIKE[kind](), progress=False)
    assert guide.mode.is_mode
    with pytest.warns(pl.NotAModeWarning, match="train longer"):
        pl.fit_laplace(model, LIKE[kind](), {"w": torch.tensor([3.0, 3.0])}, polish=False, progress=False)


def test_an_update_with_other_data_at_each_pass_says_so():
    guide = pl.fit_laplace(model, data().tensors)
    with pytest.raises(pl.NotAMode) as caught:
        pl.update(guide, DataLoader(Augmented(), 25), move=False, on_not_a_mode="raise")
    assert_says(caught, "give the same data at each pass", "augments")
    far = data().tensors[0], data().tensors[1] + 5.0
    with pytest.raises(pl.NotAMode) as caught:
        pl.update(guide, list(zip(*(each.split(25) for each in far), strict=True)), move=False, on_not_a_mode="raise")
    assert_says(caught, "fit all data jointly")


def test_maximising_the_evidence_of_other_data_at_each_pass_says_so():
    def program(x, y=None):
        std = pyro.param("std", torch.tensor(1.0), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, std).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    point = {"w": torch.tensor([3.0, 3.0])}
    with pytest.raises(pl.NotAMode) as caught:
        pl.maximize_evidence(program, DataLoader(Augmented(), 25), map_guide=point, refit=False, on_not_a_mode="raise")
    assert_says(caught, "give the same data at each pass", "augments")
