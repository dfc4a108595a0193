"""What `tune` splits off: seeded, disjoint, all of the data, and never seen by the mode that is judged on it."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from evidence.held import put
from programs.zoo import generator
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl
from pyro_laplace.data import Data, as_data
from pyro_laplace.posterior import request
from pyro_laplace.tuning.held_out import split

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore:the best values of")]


def lengths(data: Data) -> list[int]:
    """Of each batch, of its first tensor."""
    return [len(next(iter([*batch.args, *batch.kwargs.values()]))) for batch in data]


def positive(name: str, value: float) -> Tensor:
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def linear(x: Tensor, y: Tensor | None = None, **other: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 1.0)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, positive("noise", 1.0)), obs=y)


def regression(num_obs: int = 40) -> tuple[Tensor, Tensor]:
    """Inputs whose first column numbers the data."""
    g = generator()
    x = torch.randn(num_obs, 4, generator=g)
    x[:, 0] = torch.arange(num_obs) / num_obs
    return x, x @ torch.tensor([1.0, 0.5, 0.0, -0.5]) + 0.7 * torch.randn(num_obs, generator=g)


def in_batches(data: tuple[Tensor, ...], sizes: list[int]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(each.split(sizes) for each in data), strict=True))


def rows(data: Data) -> Tensor:
    """x and y, row by row, in order of the first column."""
    parts = []
    for batch in data:
        x, y = batch.args if batch.args else (batch.kwargs["x"], batch.kwargs["y"])
        assert len(x) == len(y)
        parts.append(torch.cat([x, y[:, None]], 1))
    found = torch.cat(parts)
    return found[found[:, 0].argsort()]


def kinds(x: Tensor, y: Tensor) -> dict[str, Any]:
    loader = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True)
    return {
        "tuple": (x, y),
        "dict": {"x": x, "y": y},
        "few batches": in_batches((x, y), [10, 10, 20]),
        "many batches": in_batches((x, y), [4] * 10),
        "lists": [list(each) for each in in_batches((x, y), [20, 20])],
        "dicts": [dict(zip("xy", each, strict=True)) for each in in_batches((x, y), [20, 20])],
        "loader": loader,
        "one batch": [(x, y)],
        "uneven": in_batches((x, y), [13, 13, 13, 1]),
    }


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("name", kinds(*regression()))
def test_both_parts_are_all_of_the_data(name, share):
    x, y = regression()
    rest, held = split(as_data(kinds(x, y)[name]), share, 0, lengths(as_data(kinds(x, y)[name])))
    both = torch.cat([rows(rest), rows(held)])
    both = both[both[:, 0].argsort()]
    assert torch.equal(both, torch.cat([x, y[:, None]], 1))  # so they are disjoint
    if name != "uneven":  # whole batches, some of them
        assert len(rows(held)) == pytest.approx(share * 40, abs=4)


def test_data_of_a_tensor_alone():
    y = torch.arange(30.0)
    rest, held = split(as_data(y), 0.3, 0, [30])
    parts = [torch.cat([each.args[0] for each in part]) for part in (rest, held)]
    assert torch.equal(torch.cat(parts).sort().values, y)
    assert len(parts[1]) == 9


@pytest.mark.parametrize("name", ["tuple", "few batches", "many batches"])
def test_the_seed_chooses(name):
    x, y = regression()
    data = as_data(kinds(x, y)[name])
    state = torch.get_rng_state()
    first, again, other = (rows(split(data, 0.2, seed, lengths(data))[1]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_many_batches_are_held_out_whole():
    x, y = regression()
    batches = in_batches((x, y), [4] * 10)
    rest, held = split(as_data(batches), 0.2, 0, lengths(as_data(batches)))
    assert [len(batch.args[0]) for batch in rest] == [4] * 8
    assert [len(batch.args[0]) for batch in held] == [4] * 2


def test_what_has_no_rows_stays():
    x, y = regression()
    weights, number = torch.randn(3, 3), 7
    rest, held = split(as_data({"x": x, "y": y, "weights": weights, "number": number}), 0.25, 0, [40])
    for part, count in ((rest, 30), (held, 10)):
        (batch,) = part
        assert len(batch.kwargs["x"]) == len(batch.kwargs["y"]) == count
        assert batch.kwargs["weights"] is weights
        assert batch.kwargs["number"] == number


def test_rows_of_a_nested_argument():
    x, y = regression()
    rest, held = split(as_data(({"x": x, "deep": [x]}, y)), 0.25, 0, [40])
    for part in (rest, held):
        (batch,) = part
        first, targets = batch.args
        assert torch.equal(first["x"], first["deep"][0])
        assert len(first["x"]) == len(targets)


def with_grid(x: Tensor, y: Tensor | None = None, grid: Tensor | None = None) -> None:
    """A program that takes something longer than its data, too."""
    assert grid is not None
    assert len(grid) == 50
    linear(x, y)


@pytest.mark.parametrize("sizes", [[40], [20, 20]], ids=str)
def test_an_argument_longer_than_the_data_is_not_split(sizes, seen):
    grid = torch.linspace(0, 1, 50)
    data = [(*batch, grid) for batch in in_batches(regression(), sizes)]
    pl.tune(with_grid, data, trials=3, progress=False)
    first = torch.cat([batch.args[0] for batch in seen[0]])
    assert len(first) == 32


# --- by `tune` ------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch) -> list[Data]:
    """The data that modes are found of, one after the other."""
    found: list[Data] = []
    own = request.find_mode

    def spy(model: Callable, data: Data, *rest: Any, **options: Any) -> Any:
        found.append(data)
        return own(model, data, *rest, **options)

    monkeypatch.setattr(request, "find_mode", spy)
    return found


@pytest.mark.filterwarnings("ignore:.*lie at a bound")
@pytest.mark.parametrize(
    ("name", "refit"),
    [
        ("tuple", True),
        ("tuple", False),
        ("dict", True),
        ("few batches", True),
        ("many batches", False),
        ("loader", True),
    ],
)
def test_the_mode_is_found_of_the_rest_and_then_of_all(seen, name, refit):
    x, y = regression()
    observed = []

    def objective(predictions):
        observed.append(torch.cat([each.observed for each in predictions["y"]]))
        return sum(float(each.log_prob.sum()) for each in predictions["y"])

    data = kinds(x, y)[name]
    guide = pl.tune(linear, data, objective=objective, refit=refit, trials=6, on_not_a_mode="ignore", progress=False)
    assert len(seen) == 2
    first = rows(seen[0])
    assert all(torch.equal(each, observed[0]) for each in observed)
    both = torch.cat([first[:, -1], observed[0]]).sort().values
    assert torch.equal(both, y.sort().values)
    assert torch.equal(rows(seen[1]), torch.cat([x, y[:, None]], 1))
    again = pl.fit_laplace(linear, (x, y), guide.median(), polish=False, on_not_a_mode="ignore", progress=False)
    assert again.log_evidence == pytest.approx(guide.log_evidence, rel=1e-6)
    if refit:
        assert guide.mode.is_mode
    if refit:
        again = pl.fit_laplace(linear, (x, y), guide.median(), polish=True, progress=False)
        assert_close(again.theta, guide.theta, rtol=1e-5, atol=1e-7)


def test_trials_are_of_the_rest():
    """The closed form, of the rows that were not split off."""
    x, y = regression()
    guide = pl.tune(linear, (x, y), refit=True, trials=8, seed=3, validation_share=0.25, progress=False)
    rest, held = (next(iter(part)).args for part in split(as_data((x, y)), 0.25, 3, [40]))
    path = guide.path
    for std, noise, found in zip(path.values["std"], path.values["noise"], path.log_evidence, strict=True):
        precision = rest[0].T @ rest[0] / noise**2 + torch.eye(4) / std**2
        mean = held[0] @ torch.linalg.solve(precision, rest[0].T @ rest[1] / noise**2)
        var = (held[0] @ torch.linalg.inv(precision) * held[0]).sum(1) + noise**2
        exact = dist.Normal(mean, var.sqrt()).log_prob(held[1]).mean()
        assert found == pytest.approx(exact.item(), rel=1e-8)


@pytest.mark.filterwarnings("ignore:.*lie at a bound")
def test_a_given_mode_is_not_what_is_judged(seen):
    """It has seen all data; the search is at one of the rest."""
    x, y = regression()
    point = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    guide = pl.tune(linear, (x, y), map_guide=point, refit=False, trials=4, on_not_a_mode="ignore", progress=False)
    assert len(seen) == 1
    assert len(rows(seen[0])) == 32
    assert torch.equal(guide.median()["w"], point["w"])


def test_the_search_begins_at_the_stores_values():
    x, y = regression()
    linear(x, y)
    put(std=3.0, noise=2.0)
    guide = pl.tune(linear, (x, y), trials=4, progress=False)
    first = {name: values[0].item() for name, values in guide.path.values.items()}
    assert first == {"std": pytest.approx(3.0), "noise": pytest.approx(2.0)}


def test_the_seed_of_tune():
    x, y = regression()
    paths = [
        pl.tune(linear, (x, y), trials=5, seed=seed, keep=False, progress=False).path.log_evidence for seed in (0, 0, 1)
    ]
    assert paths[0] == pytest.approx(paths[1], rel=1e-8)
    assert paths[0] != pytest.approx(paths[2], rel=1e-4)


def test_of_a_loader_the_search_is_reproducible():
    """Its order is the user's random state's."""
    x, y = regression()
    paths = []
    for _ in range(2):
        pyro.clear_param_store()
        torch.manual_seed(3)
        data = DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True)
        paths.append(pl.tune(linear, data, trials=5, progress=False).path.log_evidence)
    assert paths[0] == pytest.approx(paths[1], rel=1e-8)


# --- what cannot be split -----------------------------------------------------------------------------------------


def closed_over() -> tuple[Callable, Any]:
    x, y = regression()
    return lambda: linear(x, y), ()


def one_datum() -> tuple[Callable, Any]:
    def model(y=None):
        f = pyro.sample("f", dist.Normal(torch.zeros(5), positive("std", 1.0)).to_event(1))
        pyro.sample("y", dist.MultivariateNormal(f, torch.eye(5)), obs=y)

    return model, torch.randn(5)


def fixed_plate() -> tuple[Callable, Any]:
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(4), positive("std", 1.0)).to_event(1))
        with pyro.plate("data", 40):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    return model, regression()


def columns() -> tuple[Callable, Any]:
    """Data along the second axis: no tensor has a row for each."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(4), positive("std", 1.0)).to_event(1))
        with pyro.plate("data", x.shape[1]):
            pyro.sample("y", dist.Normal(w @ x, 1.0), obs=None if y is None else y[0])

    x, y = regression()
    return model, (x.T, y[None])


@pytest.mark.parametrize("make", [closed_over, one_datum, fixed_plate, columns])
def test_data_that_cannot_be_split(make):
    model, data = make()
    with pytest.raises(pl.InvalidData) as error:
        pl.tune(model, data, progress=False)
    assert_says(error, "validation_data=")
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1, 0.001, 0.999])
def test_shares_that_leave_nothing(share):
    with pytest.raises(pl.InvalidOption) as error:
        pl.tune(linear, regression(), validation_share=share, progress=False)
    assert_says(error, f"validation_share={share}")
    assert not list(pyro.get_param_store().keys())


def test_a_one_shot_iterator():
    for data, held in ((iter([regression()]), None), (regression(), iter([regression()]))):
        with pytest.raises(pl.InvalidData, match="one-shot"):
            pl.tune(linear, data, held, progress=False)
    assert not list(pyro.get_param_store().keys())
