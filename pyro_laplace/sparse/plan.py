"""The order in which a sparse symmetric matrix is eliminated, and the dense blocks that its factor then falls into.

Nothing here depends on the matrix's values, so one plan does for all matrices of a pattern. Few dense rows (fixed
effects, hyperparameters) come last: a minimum degree ordering takes time quadratic in the length of such a row. The
others are ordered by SuperLU's multiple minimum degree (Liu 1985, "Modification of the minimum-degree algorithm by
multiple elimination").

The factor L of an M-matrix has no entry that cancels, so that of one with this pattern shows where any other can have
entries. Consecutive columns with nearly the same rows are one block (a supernode), and the blocks form a tree: the
rows of a block below its own are a part of its parent's. Blocks of one shape at one depth are worked on at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_laplace.settings import settings

type Indices = np.ndarray
"""An array of integers of numpy."""

type SparseMatrix = Any
"""A sparse matrix of scipy."""


@dataclass(frozen=True, eq=False)
class Supernodes:
    """Blocks of one shape at one depth of the tree: `cols` columns with `below` rows beneath these.

    Attributes:
        cols: number of columns.
        below: number of rows beneath.
        start: first column of each [b].
        block: where each one's entries [cols + below, cols] begin among those of all blocks [b].
        front: where each one's square [cols + below, cols + below] begins among those of all inner blocks [b]; None
            for leaves, of which nothing is asked.
        parent_front: the same of its parent [b].
        parent_width: number of rows of that square [b].
        places: of the rows beneath in that square [b, below].
    """

    cols: int
    below: int
    start: Indices
    block: Indices
    front: Indices | None
    parent_front: Indices
    parent_width: Indices
    places: Indices

    def parts(self) -> Iterator["Supernodes"]:
        """The same, some blocks at a time, so that their squares stay within `settings.pass_elements`."""
        step = max(1, settings.pass_elements // (self.cols + self.below) ** 2)
        for begin in range(0, len(self.start), step):
            part = slice(begin, begin + step)
            yield Supernodes(
                self.cols,
                self.below,
                self.start[part],
                self.block[part],
                None if self.front is None else self.front[part],
                self.parent_front[part],
                self.parent_width[part],
                self.places[part],
            )


@dataclass(frozen=True, eq=False)
class SparsePlan:
    """How matrices of one pattern are factorised.

    Attributes:
        order: coordinate of each row of the factor [n].
        indptr: of the factor's pattern, by columns [n + 1].
        indices: rows of its entries [nnz], ascending in each column; the first is the diagonal's.
        places: of these entries in the blocks [nnz].
        supernodes: the blocks, parents before their children.
        block_elements: how many entries all blocks have.
        front_elements: how many the squares of all inner blocks have.
    """

    order: Indices
    indptr: Indices
    indices: Indices
    places: Indices
    supernodes: tuple[Supernodes, ...]
    block_elements: int
    front_elements: int

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.order)

    @property
    def nnz(self) -> int:
        """Number of entries that a factor may have."""
        return len(self.indices)

    @staticmethod
    def of(matrix: SparseMatrix) -> "SparsePlan":
        """Plan for all matrices with entries where one has them.

        Args:
            matrix: a symmetric scipy matrix [n, n]; its values do not count, nor whether one is zero.

        Returns:
            the plan.
        """
        import scipy.sparse  # takes a quarter of a second to load

        pattern = scipy.sparse.coo_array(matrix)
        row, col = pattern.coords
        beside, size = row != col, matrix.shape[0]
        off = scipy.sparse.csc_array((-np.ones(int(beside.sum())), (row[beside], col[beside])), (size, size))
        off.data[:] = -1.0  # entries that were given twice
        degree = np.diff(off.indptr)
        m_matrix = (off + scipy.sparse.diags_array(degree + 1.0)).tocsc()
        order = _ordered(m_matrix, degree)
        factor = superlu(m_matrix[order][:, order])
        assert np.array_equal(factor.perm_c, np.arange(size))
        return _blocked(*_postordered(order, factor.L))

    def entries(self, lower: SparseMatrix) -> Indices:
        """Where the entries of a factor with this order lie among those of the pattern.

        Args:
            lower: a factor in compressed columns, with sorted rows; it may lack entries that happen to be zero.

        Returns:
            their numbers [nnz of lower].

        Raises:
            KeyError: if a factor of this pattern has no entry in some place.
        """
        if lower.nnz == self.nnz:
            return np.arange(self.nnz)
        found = self.entries_at(lower.indices, np.repeat(np.arange(self.size), np.diff(lower.indptr)))
        if (found < 0).any():
            raise KeyError("the plan is that of another pattern")
        return found

    def entries_at(self, row: Indices, col: Indices) -> Indices:
        """The same of places of L.

        Args:
            row: of each place [k].
            col: of each place, at most its row [k].

        Returns:
            their numbers [k]; -1 where a factor of this pattern has no entry.
        """
        own = np.repeat(np.arange(self.size), np.diff(self.indptr)) * self.size + self.indices
        wanted = np.asarray(col, dtype=np.int64) * self.size + row
        found = np.searchsorted(own, wanted)
        return np.where(own[np.minimum(found, len(own) - 1)] == wanted, found, -1)


def superlu(matrix: SparseMatrix, ordering: str = "NATURAL") -> Any:
    """SuperLU's factors of a symmetric matrix with its pivots on the diagonal: ``L U`` with ``U = D L'``.

    Args:
        matrix: in compressed columns.
        ordering: SuperLU's name of the order of elimination.

    Returns:
        scipy's object with the factors.
    """
    from scipy.sparse.linalg import splu  # takes a quarter of a second to load

    symmetric = {"SymmetricMode": True}
    return splu(matrix.tocsc(), permc_spec=ordering, diag_pivot_thresh=0.0, options=symmetric)


def _ordered(m_matrix: SparseMatrix, degree: Indices) -> Indices:
    """By minimum degree, few dense rows last."""
    dense = degree > max(settings.dense_degree, settings.dense_degree_root * len(degree) ** 0.5)
    sparse, last = np.flatnonzero(~dense), np.flatnonzero(dense)
    if not len(sparse):
        return last
    by_degree = superlu(m_matrix[sparse][:, sparse], "MMD_AT_PLUS_A").perm_c
    return np.concatenate([sparse[np.argsort(by_degree)], last])


def _postordered(order: Indices, lower: SparseMatrix) -> tuple[Indices, Indices, Indices]:
    """Children before their parent, one subtree after the other: chains are consecutive, and the fill is the same."""
    import scipy.sparse

    size = len(order)
    lower.sort_indices()
    parent = _parents(lower.indptr, lower.indices).tolist()
    count = [1] * size
    for column, above in enumerate(parent):
        if above >= 0:
            count[above] += count[column]
    last, free, left = [0] * size, [0] * size, size
    for column in range(size - 1, -1, -1):
        above = parent[column]
        last[column] = (left if above < 0 else free[above]) - 1
        free[column] = last[column]
        if above < 0:
            left -= count[column]
        else:
            free[above] -= count[column]
    number = np.asarray(last)
    col = np.repeat(np.arange(size), np.diff(lower.indptr))
    moved = scipy.sparse.csc_array((lower.data, (number[lower.indices], number[col])), (size, size))
    moved.sort_indices()
    return order[np.argsort(number)], moved.indptr.astype(np.int64), moved.indices.astype(np.int64)


def _parents(indptr: Indices, indices: Indices) -> Indices:
    """The first row beneath the diagonal, of each column; -1 where there is none."""
    parent, some = np.full(len(indptr) - 1, -1), np.diff(indptr) > 1
    parent[some] = indices[indptr[:-1][some] + 1]
    return parent


def _blocked(order: Indices, indptr: Indices, indices: Indices) -> SparsePlan:
    """Find the blocks of a factor's pattern, and their tree."""
    size = len(order)
    below, parent = np.diff(indptr) - 1, _parents(indptr, indices)
    starts = _first_columns(parent.tolist(), below.tolist())
    count = len(starts)
    stops = np.append(starts[1:], size)
    cols, rows = stops - starts, below[stops - 1]
    number = np.repeat(np.arange(count), cols)  # of each column's block
    up = parent[stops - 1]
    above = np.where(up >= 0, number[up], -1)
    depth = _depths(above.tolist())
    inner = np.zeros(count, dtype=bool)
    inner[above[above >= 0]] = True

    heights = cols + rows
    block = _offsets(heights * cols)
    front = _offsets(np.where(inner, heights**2, 0))
    # the rows of all blocks one after the other, each with its block's number: ascending
    begin, flat = _offsets(heights), np.empty(heights.sum(), dtype=np.int64)
    every = np.arange(size)
    flat[begin[number] + every - starts[number]] = every
    column = np.repeat(every, below + 1)
    of = number[column]
    beneath = (column == stops[of] - 1) & (indices != column)
    flat[(begin + cols - indptr[stops - 1] - 1)[of[beneath]] + np.flatnonzero(beneath)] = indices[beneath]
    keys = np.repeat(np.arange(count), heights) * size + flat

    def place(of: Indices, row: Indices) -> Indices:
        return np.searchsorted(keys, of * size + row) - begin[of]

    places = block[of] + place(of, indices) * cols[of] + column - starts[of]

    supernodes = []
    shape = np.stack([depth, cols, rows, inner], 1)
    kinds, member = np.unique(shape, axis=0, return_inverse=True)
    sorted_members = np.split(np.argsort(member.reshape(-1), kind="stable"), np.cumsum(np.bincount(member.reshape(-1))))
    for (_, width, under, has_front), chosen in zip(kinds.tolist(), sorted_members[:-1], strict=True):
        over = above[chosen]
        lies = begin[chosen][:, None] + width + np.arange(under)
        within = place(np.broadcast_to(over[:, None], lies.shape), flat[lies]) if under else lies
        supernodes.append(
            Supernodes(
                width,
                under,
                starts[chosen],
                block[chosen],
                front[chosen] if has_front else None,
                front[over],
                heights[over],
                within,
            )
        )
    elements = int((heights * cols).sum()), int(heights[inner].astype(np.int64) @ heights[inner])
    return SparsePlan(order, indptr, indices, places, tuple(supernodes), *elements)


def _first_columns(parent: list[int], below: list[int]) -> Indices:
    """The first column of each block: a column joins the one before, its child, at the price of few zeros."""
    starts, width = [0], 1
    for column in range(1, len(parent)):
        zeros = below[column] + 1 - below[column - 1]
        exact = zeros == 0
        few = zeros <= settings.supernode_zeros and width < settings.supernode_columns
        if parent[column - 1] == column and (exact or few):
            width += 1
        else:
            starts.append(column)
            width = 1
    return np.asarray(starts)


def _depths(above: list[int]) -> Indices:
    """How many blocks lie above each, whose numbers are higher."""
    depths = [0] * len(above)
    for number in range(len(above) - 1, -1, -1):
        if above[number] >= 0:
            depths[number] = depths[above[number]] + 1
    return np.asarray(depths)


def _offsets(sizes: Indices) -> Indices:
    return np.cumsum(sizes) - sizes
