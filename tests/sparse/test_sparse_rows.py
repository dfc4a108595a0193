"""Sparse matrices read off their products: the entries, and how many products that takes."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.sparse.compression import Compression
from pyro_laplace.sparse.rows import NotSparse, sparse_rows, sparse_symmetric
from pyro_laplace.sparse.symmetric import Symmetric

pytestmark = pytest.mark.usefixtures("float64")

ROWS = 800


class Counted:
    """The products of a matrix."""

    def __init__(self, matrix):
        self.matrix, self.products = matrix, 0

    def __call__(self, vectors):
        self.products += len(vectors)
        return vectors @ self.matrix.mT


def matrix_of(*columns, size):
    """Rows with an entry in each of the columns, of sizes that differ by two orders."""
    generator = np.random.default_rng(0)
    index = np.stack(columns, 1)
    values = generator.normal(size=index.size) * 10 ** generator.uniform(-1, 1, index.size)
    at = np.repeat(np.arange(len(index)), index.shape[1]), index.ravel()
    return torch.from_numpy(scipy.sparse.csr_array((values, at), (len(index), size)).toarray())


def drawn(size, start=0, seed=0):
    return start + np.random.default_rng(seed).integers(0, size, ROWS)


def intercepts():
    return matrix_of(drawn(300), *(np.full(ROWS, 300 + k) for k in range(3)), size=303), [(0, 300), (300, 303)]


def slopes():
    return matrix_of(*(3 * drawn(100) + k for k in range(3)), size=300), [(0, 300)]


def slopes_of_another_layout():
    return matrix_of(*(drawn(100) + 100 * k for k in range(3)), size=300), [(0, 300)]


def crossed():
    return matrix_of(drawn(200), drawn(40, 200, 1), size=240), [(0, 200), (200, 240)]


def pairs():
    """Two of one site, as a comparison of players has them."""
    return matrix_of(drawn(150), drawn(150, 0, 2), size=150), [(0, 150)]


def several():
    return matrix_of(*(drawn(400, 0, seed) for seed in range(4)), size=400), [(0, 400)]


def fixed():
    """More fixed effects than are taken one by one unasked."""
    return matrix_of(drawn(300), *(np.full(ROWS, 300 + k) for k in range(40)), size=340), [(0, 300), (300, 340)]


ALL = {make.__name__: make for make in (intercepts, slopes, slopes_of_another_layout, crossed, pairs, several, fixed)}
MOST = {"intercepts": 12, "slopes": 30, "slopes_of_another_layout": 30, "crossed": 12}
"""Products: a few for each site, and one for each small site's coordinate."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_the_entries_are_found(name, dtype):
    matrix, spans = ALL[name]()
    matrix = matrix.to(dtype)
    multiply = Counted(matrix)
    found = sparse_rows(multiply, ROWS, [slice(*span) for span in spans], matrix.shape[1], matrix[0])
    dense = torch.zeros_like(matrix, dtype=torch.float64).index_put((found.row, found.col), found.value)
    tol = 1e-12 if dtype == torch.float64 else 1e-4
    largest = matrix.abs().amax(1, keepdim=True).double()
    assert_close(dense / largest, matrix.double() / largest, rtol=0, atol=tol)
    assert multiply.products <= MOST.get(name, matrix.shape[1] + 200)
    keys = found.row * matrix.shape[1] + found.col
    assert len(keys) == len(keys.unique())


@pytest.mark.parametrize("name", ALL)
def test_products_of_rows_are_the_curvature(name):
    matrix, spans = ALL[name]()
    found = sparse_rows(Counted(matrix), ROWS, [slice(*span) for span in spans], matrix.shape[1], matrix[0])
    assert_close(found.gram(ROWS, matrix.shape[1]).matrix(), matrix.mT @ matrix, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["intercepts", "crossed", "slopes", "fixed"])
def test_a_symmetric_matrix_and_its_pattern(name):
    matrix, spans = ALL[name]()
    hessian = matrix.mT @ matrix + torch.eye(matrix.shape[1])
    multiply = Counted(hessian)
    found = sparse_symmetric(multiply, [slice(*span) for span in spans], len(hessian), hessian[0])
    scale = hessian.diagonal().sqrt()
    assert_close(found.matrix() / scale / scale[:, None], hessian / scale / scale[:, None], rtol=1e-11, atol=1e-11)
    pattern, again = Compression.of(found), Counted(3 * hessian)
    assert_close(pattern.values(again, hessian[0]), 3 * found.value, rtol=1e-10, atol=1e-10)
    assert again.products <= multiply.products


def test_entries_of_a_pattern_have_a_graph():
    x = torch.linspace(0.5, 1.5, 60, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    gradient = torch.autograd.grad(((x[1:] - x[:-1]) ** 3).sum() / scale, x, create_graph=True)[0]

    def multiply(vectors):
        rows = [torch.autograd.grad(gradient, x, v, create_graph=True)[0] for v in vectors]
        return torch.stack(rows)

    found = sparse_symmetric(lambda v: multiply(v).detach(), [slice(0, 60)], 60, x.detach())
    values = Compression.of(found).values(multiply, x.detach())
    assert len(values) == 119
    (slope,) = torch.autograd.grad(values.sum(), scale)
    assert_close(slope, -values.sum().detach() / scale.detach())


def test_what_is_dense_is_refused_after_few_products():
    matrix = torch.randn(ROWS, 600, generator=torch.Generator().manual_seed(0))
    multiply = Counted(matrix)
    with pytest.raises(NotSparse) as error:
        sparse_rows(multiply, ROWS, [slice(0, 600)], 600, matrix[0])
    assert torch.equal(error.value.places, torch.arange(600))
    assert multiply.products < 200
    with pl.settings.using(recovery_dense=600):
        found = sparse_rows(multiply, ROWS, [slice(0, 600)], 600, matrix[0])
    assert torch.equal(found.value, matrix[found.row, found.col])
    assert len(found.value) == matrix.numel()


def test_what_is_not_finite_stays_so():
    matrix = intercepts()[0]
    matrix[3, 5] = torch.nan
    found = sparse_rows(Counted(matrix), ROWS, [slice(0, 300), slice(300, 303)], 303, matrix[0])
    assert bool(found.gram(ROWS, 303).matrix().isnan().any())


def test_a_symmetric_matrix_by_its_lower_triangle():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(6, 6, generator=generator).tril()
    dense[3, 1] = dense[5, 2] = dense[4, 4] = 0.0
    dense = dense + dense.tril(-1).mT
    matrix = Symmetric.of_dense(dense)
    assert torch.equal(matrix.matrix(), dense)
    assert torch.equal(torch.from_numpy(matrix.compressed().toarray()), dense)
    v = torch.randn(2, 6, generator=generator)
    assert_close(matrix.times(v), v @ dense)
    assert torch.equal(matrix.diagonal, dense.diagonal())
    assert matrix.entries == int((dense != 0).sum())
    assert bool(matrix.coupled.all())
    assert not bool(Symmetric.of_diagonal(dense.diagonal()).coupled.any())
    places = torch.tensor([2, -1, 0, 1, -1, 3])
    kept = torch.tensor([2, 3, 0, 5])
    assert torch.equal(matrix.moved(places, 4).matrix(), dense[kept][:, kept])
    assert_close(Symmetric.total([matrix, matrix * 2.0]).matrix(), 3 * dense)
    assert torch.equal(Symmetric.from_state(matrix.state()).matrix(), dense)
