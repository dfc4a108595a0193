"""The factor of a sparse matrix against dense linear algebra: solves, draws, and entries of the inverse."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.sparse.factor import SparseFactor, SparseIndefinite
from pyro_laplace.sparse.plan import SparsePlan

pytestmark = pytest.mark.usefixtures("float64")


def gram(*columns):
    """A'A + I of rows with random entries in the given columns."""
    generator = np.random.default_rng(0)
    index = np.stack(columns, 1)
    rows = np.repeat(np.arange(len(index)), index.shape[1])
    a = scipy.sparse.csr_array((generator.normal(size=index.size), (rows, index.ravel())))
    return (a.T @ a + scipy.sparse.eye_array(a.shape[1])).tocsc()


def arrow(groups, fixed=3):
    group = np.repeat(np.arange(groups), 3)
    return gram(group, *(np.full_like(group, groups + number) for number in range(fixed)))


def chain(steps, reach=2):
    first = np.arange(steps - reach + 1)
    return gram(*(first + number for number in range(reach)), np.full_like(first, steps))


def crossed(users, items, data):
    generator = np.random.default_rng(1)
    return gram(
        generator.integers(0, users, data), users + generator.integers(0, items, data), np.full(data, users + items)
    )


def grid(width):
    number = np.arange(width**2).reshape(width, width)
    down, right = number[:-1], number[:, :-1]
    return gram(np.append(down, right), np.append(number[1:], number[:, 1:]))


def badly_scaled():
    scale = scipy.sparse.diags_array(10.0 ** np.linspace(-8, 8, 43))
    return (scale @ arrow(40) @ scale).tocsc()


def cancelling():
    """An entry of the factor is zero by its values, and not by its place."""
    return scipy.sparse.csc_array([[1.0, 0, 1, 1], [0, 1, -1, 1], [1, -1, 5, 0], [1, 1, 0, 5]])


MATRICES = {
    "arrow": lambda: arrow(40),
    "chain": lambda: chain(90),
    "band": lambda: chain(90, reach=4),
    "crossed": lambda: crossed(50, 9, 150),
    "grid": lambda: grid(9),
    "nested": lambda: gram(np.repeat(np.arange(60), 2), 60 + np.repeat(np.arange(60), 2) % 5, np.full(120, 65)),
    "rows that are taken for dense": lambda: arrow(600, 2),
    "badly scaled": badly_scaled,
    "cancelling": cancelling,
    "diagonal": lambda: scipy.sparse.diags_array([1.0, 2.0, 3.0]).tocsc(),
    "dense": lambda: scipy.sparse.csc_array(np.eye(6) + 1),
    "one": lambda: scipy.sparse.csc_array([[2.0]]),
    "two apart": lambda: scipy.sparse.block_diag([arrow(10), chain(12)]).tocsc(),
}


@pytest.fixture(params=MATRICES)
def matrix(request):
    return MATRICES[request.param]()


def test_it_is_that_of_the_dense_matrix(matrix):
    factor, dense = SparseFactor.of(matrix), torch.from_numpy(matrix.toarray())
    scale = dense.diagonal().sqrt()
    inverse = torch.linalg.inv(dense / scale / scale[:, None])  # of unit diagonal
    v = torch.randn(3, len(dense), generator=torch.Generator().manual_seed(0))
    eye = torch.eye(len(dense))
    assert_close(factor.solve(v * scale) * scale, v @ inverse, rtol=1e-9, atol=1e-9)
    assert_close(factor.log_det(), 2 * scale.log().sum() - torch.logdet(inverse), rtol=1e-9, atol=1e-9)
    colored = factor.color(eye) * scale
    assert_close(colored.mT @ colored, inverse, rtol=1e-9, atol=1e-9)
    assert_close(factor.whiten(factor.color(v)), v, rtol=1e-9, atol=1e-9)
    pushed = factor.push(v * scale)
    assert_close(pushed @ pushed.mT, v @ inverse @ v.mT, rtol=1e-9, atol=1e-9)
    assert_close(factor.variance() * scale**2, inverse.diagonal(), rtol=1e-9, atol=0)
    assert_close(torch.from_numpy(factor.matrix().toarray()) / scale / scale[:, None], dense / scale / scale[:, None])


def test_entries_of_the_inverse_are_there_wherever_the_matrix_has_some(matrix):
    factor, dense = SparseFactor.of(matrix), torch.from_numpy(matrix.toarray())
    scale = dense.diagonal().sqrt()
    inverse = torch.linalg.inv(dense / scale / scale[:, None])
    found = torch.from_numpy(factor.inverse().toarray()) * scale * scale[:, None]
    stored = torch.from_numpy(factor.inverse().astype(bool).toarray())
    assert bool(stored[dense != 0].all())
    assert_close(found[stored], inverse[stored], rtol=1e-9, atol=1e-9)
    row, col = dense.nonzero(as_tuple=True)
    assert_close(factor.inverse_at(row, col) * scale[row] * scale[col], inverse[row, col], rtol=1e-9, atol=1e-9)


def test_blocks_that_store_zeros_change_nothing(matrix):
    expected = SparseFactor.of(matrix).variance()
    with pl.settings.using(supernode_columns=1):
        assert_close(SparseFactor.of(matrix).variance(), expected, rtol=1e-11, atol=0)


def test_a_plan_does_for_every_matrix_of_its_pattern():
    one, other = arrow(30), arrow(30)
    other.data[:] = np.where(other.indices == np.repeat(np.arange(33), np.diff(other.indptr)), 50.0, 0.7)
    plan = SparsePlan.of(one)
    assert_close(
        SparseFactor.of(other, plan).variance(), torch.linalg.inv(torch.from_numpy(other.toarray())).diagonal()
    )
    fewer = scipy.sparse.diags_array(np.arange(1.0, 34.0)).tocsc()  # covers less
    assert_close(SparseFactor.of(fewer, plan).variance(), 1 / torch.arange(1.0, 34.0))
    with pytest.raises(KeyError, match="another pattern"):
        SparseFactor.of(chain(32), plan).variance()


@pytest.mark.parametrize(
    ("matrix", "where"),
    [
        ([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]], [0, 1]),
        ([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], [0, 1]),  # a pivot that is exactly zero
        ([[1.0, 1, 1], [1, 1, 2], [1, 2, 9]], [0, 1, 2]),  # one that is zero before the last
        ([[1.0, 0], [0, -1]], [1]),
        ([[1.0, 0], [0, 0]], [1]),
    ],
)
def test_what_is_not_positive_definite_shows_a_direction(matrix, where):
    with pytest.raises(SparseIndefinite) as error:
        SparseFactor.of(scipy.sparse.csc_array(matrix))
    shares = error.value.shares
    assert float(shares.sum()) == pytest.approx(1.0)
    assert set(shares.nonzero()[:, 0].tolist()) <= set(where)
    assert error.value.value <= 0


def test_what_is_not_finite_has_no_direction():
    with pytest.raises(SparseIndefinite) as error:
        SparseFactor.of(scipy.sparse.csc_array([[1.0, np.nan], [np.nan, 1.0]]))
    assert bool(error.value.shares.isnan().all())


@pytest.mark.parametrize("make", [arrow, chain], ids=["arrow", "chain"])
def test_a_factor_is_as_long_as_its_matrix(make):
    """No fill, and few steps, whatever the size: rows that are dense come last, and chains fall into blocks."""
    for size in (500, 5000):
        plan = SparsePlan.of(make(size))
        assert plan.nnz <= 6 * size
        assert plan.block_elements <= 40 * size
        assert len(plan.supernodes) <= 4 + size / 50
