"""A sparse matrix read off its products with few vectors, whatever program gives these.

A row that has one entry among some coordinates shows it: of ``y = M v`` and ``y' = M (v c)``, with c the coordinate's
number, the ratio ``y' / y`` is that number, and ``y / v`` the entry; further random vectors prove that it was one
entry. Coordinates are taken site by site, then those of a site by their remainders of 2, 3, 5 and further primes, so
that any two are apart in most rounds; what is known is subtracted, and uncovers what is left. A row with few entries
in each site, as a datum of a hierarchy has, costs as many products as the sites have digits, and no look at the
program: however it writes ``effect[group]``, the entries are found. A small site's columns are taken one by one.

The idea is that of sparse recovery by bits and peeling (Indyk 2008, "Explicit constructions for compressed sensing of
sparse signals"; Luby and Mitzenmacher 2005, "Verification-based decoding").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._autodiff import unit_rows
from pyro_laplace._errors import LaplaceError
from pyro_laplace._memory import refuse_too_large
from pyro_laplace.settings import settings
from pyro_laplace.sparse.symmetric import Symmetric


class NotSparse(LaplaceError):
    """Rows of a matrix have many entries in many coordinates.

    Attributes:
        places: these coordinates.
    """

    def __init__(self, places: Tensor) -> None:
        """Say so.

        Args:
            places: the coordinates.
        """
        super().__init__(f"{len(places)} coordinates are coupled with many others")
        self.places = places


@dataclass(frozen=True, eq=False)
class Triplets:
    """The entries of a sparse matrix [rows, params], no place there twice.

    Attributes:
        row: of each entry.
        col: of each entry.
        value: of each entry, float64.
    """

    row: Tensor
    col: Tensor
    value: Tensor

    def gram(self, rows: int, size: int) -> Symmetric:
        """``A'A`` of these rows A.

        Args:
            rows: number of rows.
            size: number of coordinates.

        Returns:
            the matrix.
        """
        import scipy.sparse  # takes a quarter of a second to load

        counts = torch.bincount(self.row, minlength=rows).double()
        bound = int(min(float(counts @ counts), float(size) ** 2))
        refuse_too_large(bound, 12, f"the entries of a sparse curvature of {size} coordinates", _REMEDY)
        at = self.row.cpu().numpy(), self.col.cpu().numpy()
        a = scipy.sparse.csr_array((self.value.cpu().numpy(), at), (rows, size))
        found = scipy.sparse.tril(a.T @ a).tocoo()
        row, col = (torch.from_numpy(each).long().to(self.value.device) for each in found.coords)
        return Symmetric.of(size, row, col, torch.from_numpy(found.data).to(self.value.device))

    def joined(self, other: "Triplets", size: int) -> "Triplets":
        """These entries, and those of another where there is none; all are of `size` columns."""
        keys = torch.cat([self.row * size + self.col, other.row * size + other.col])
        value = torch.cat([self.value, other.value])
        keys, order = keys.sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        return Triplets(keys[first] // size, keys[first] % size, value[order[first]])


def sparse_rows(
    multiply: Callable[[Tensor], Tensor], rows: int, spans: Sequence[slice], size: int, like: Tensor
) -> Triplets:
    """The entries of a matrix M.

    Args:
        multiply: vectors v [v, params] to M v [v, rows].
        rows: number of rows of M.
        spans: where the coordinates of each site lie.
        size: number of coordinates.
        like: of the dtype and on the device of the vectors.

    Returns:
        the entries.

    Raises:
        NotSparse: if rows have many entries in a site of many coordinates.
    """
    return _Search(multiply, rows, spans, size, like, symmetric=False).found()


def sparse_symmetric(
    multiply: Callable[[Tensor], Tensor], spans: Sequence[slice], size: int, like: Tensor
) -> Symmetric:
    """The entries of a symmetric matrix M, such as a Hessian.

    Args:
        multiply: vectors v [v, params] to M v [v, params].
        spans: where the coordinates of each site lie.
        size: number of coordinates.
        like: of the dtype and on the device of the vectors.

    Returns:
        the matrix.

    Raises:
        NotSparse: if many coordinates are coupled with many others.
    """
    entries = _Search(multiply, size, spans, size, like, symmetric=True).found()
    below = torch.where(entries.row == entries.col, 1.0, 0.5).double()  # the others are there twice, to rounding
    row, col = torch.maximum(entries.row, entries.col), torch.minimum(entries.row, entries.col)
    return Symmetric.of(size, row, col, entries.value * below)


@dataclass(frozen=True, eq=False)
class _Class:
    """Coordinates of which a row is hoped to have one entry.

    Attributes:
        members: the coordinates [m].
        probes: v, v times each digit of the place among the members, and vectors that prove [probes, m].
        digits: number of digits.
    """

    members: Tensor
    probes: Tensor
    digits: int

    @staticmethod
    def of(members: Tensor, like: Tensor) -> "_Class":
        generator = torch.Generator().manual_seed(len(members))
        digits, base = 1, settings.recovery_base
        while base**digits < len(members):
            digits += 1
        random = torch.rand(1 + settings.recovery_proofs, len(members), generator=generator, dtype=torch.float64) + 0.5
        first, proofs = random.to(like)[:1], random.to(like)[1:]
        place = torch.arange(len(members), device=like.device)
        digit = torch.stack([place // base**power % base for power in range(digits)])
        return _Class(members, torch.cat([first, first * digit, proofs]), digits)

    @property
    def plain(self) -> list[int]:
        """Which probes have entries about 1, and not digits."""
        return [0, *range(1 + self.digits, len(self.probes))]

    def left_of(self, products: Tensor, known: Triplets, size: int) -> Tensor:
        """Products with the probes [probes, rows], less what the entries say that are known."""
        place = torch.full((size,), -1, device=products.device)
        place[self.members] = torch.arange(len(self.members), device=products.device)
        place = place[known.col]
        ours = place >= 0
        said = self.probes.double()[:, place[ours]] * known.value[ours]
        return products.index_add(1, known.row[ours], -said)

    def decoded(self, left: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rows show.

        Args:
            left: products of the rows with the probes, less what is known [probes, rows].
            rounding: size of what is rounding [rows].

        Returns:
            which rows have one entry, and of these the place among the members and the entry.
        """
        ratio = left[1 : 1 + self.digits] / left[0]
        digit = ratio.round()
        fits = ((ratio - digit).abs() < settings.recovery_digit) & (digit >= 0) & (digit < settings.recovery_base)
        fits = fits.all(0)
        powers = settings.recovery_base ** torch.arange(self.digits, device=digit.device)
        place = (torch.where(fits, digit, 0.0).long() * powers.unsqueeze(1)).sum(0)
        fits &= place < len(self.members)
        place = place.clamp(max=len(self.members) - 1)
        value = left[0] / self.probes[0].double()[place]
        proofs = self.probes[1 + self.digits :].double()[:, place] * value
        fits &= ((left[1 + self.digits :] - proofs).abs() <= rounding).all(0)
        return fits, place[fits], value[fits]


@dataclass(frozen=True, eq=False)
class _Search:
    """The search for a matrix's entries; its fields are the arguments of `sparse_rows`."""

    multiply: Callable[[Tensor], Tensor]
    rows: int
    spans: Sequence[slice]
    size: int
    like: Tensor
    symmetric: bool

    def found(self) -> Triplets:
        """All entries."""
        nothing = torch.zeros(0, dtype=torch.long, device=self.like.device)
        known = Triplets(nothing, nothing, nothing.double())
        if not self.size or not self.rows:
            return known
        scale = self.multiply(self.like.new_ones(1, self.size)).double()[0].abs()
        if not bool(scale.isfinite().all()):
            bad = (~scale.isfinite()).nonzero()[:, 0]
            return self._mirrored(Triplets(bad, torch.zeros_like(bad), torch.full_like(scale[bad], torch.nan)))
        few = [span for span in self.spans if span.stop - span.start <= settings.recovery_columns]
        many = [span for span in self.spans if span not in few]
        known = self._with_columns(known, few)
        wanted = torch.ones(self.rows, dtype=torch.bool, device=self.like.device)
        for span in few if self.symmetric else []:
            wanted[span] = False
        for modulus in _moduli():
            before = len(known.value)
            known, many = self._round(known, many, modulus, wanted, scale)
            if not many:
                return known
            if modulus >= settings.recovery_hopeless and len(known.value) == before:
                break
        if sum(span.stop - span.start for span in many) > settings.recovery_dense:
            raise NotSparse(torch.cat([torch.arange(span.start, span.stop) for span in many]).to(self.like.device))
        return self._with_columns(known, many)

    def _round(
        self, known: Triplets, spans: Sequence[slice], modulus: int, wanted: Tensor, scale: Tensor
    ) -> tuple[Triplets, list[slice]]:
        """What sites show whose coordinates are divided by their remainders, and those that have more to show."""
        still = []
        for span in spans:
            done = True
            for first in range(span.start, min(span.start + modulus, span.stop)):
                one = _Class.of(torch.arange(first, span.stop, modulus, device=self.like.device), self.like)
                vectors = self.like.new_zeros(len(one.probes), self.size).index_copy(1, one.members, one.probes)
                products = self.multiply(vectors).double()
                left = one.left_of(products, known, self.size)
                rounding = settings.probe_rounding * self._eps * products[one.plain].abs().amax(0)
                zero = torch.maximum(rounding, settings.outer_rounding * self._eps * scale)
                rows = (wanted & (left[one.plain].abs().amax(0) > zero)).nonzero()[:, 0]
                fits, place, value = one.decoded(left[:, rows], rounding[rows])
                known = known.joined(Triplets(rows[fits], one.members[place], value), self.size)
                done &= bool(fits.all())
            known = self._mirrored(known)
            if not done:
                still.append(span)
        return known, still

    def _with_columns(self, known: Triplets, spans: Sequence[slice]) -> Triplets:
        """What is known, and some sites' columns, one by one."""
        step = max(1, settings.pass_elements // (8 * max(self.rows, self.size)))
        for span in spans:
            for start in range(span.start, span.stop, step):
                stop = min(start + step, span.stop)
                columns = self.multiply(unit_rows(start, stop, self.size, self.like)).double()
                col, row = columns.nonzero(as_tuple=True)
                known = Triplets(row, start + col, columns[col, row]).joined(known, self.size)
        return self._mirrored(known)

    def _mirrored(self, known: Triplets) -> Triplets:
        """Of a symmetric matrix, both triangles."""
        return known.joined(Triplets(known.col, known.row, known.value), self.size) if self.symmetric else known

    @property
    def _eps(self) -> float:
        return torch.finfo(self.like.dtype).eps


def _moduli() -> list[int]:
    """1, and the primes up to a setting."""
    most = settings.recovery_modulus
    return [number for number in range(1, most + 1) if all(number % other for other in range(2, number))]


_REMEDY = (
    "these data are not of many groups apart: use structure='kron' for layers, 'diag', pl.LowRank(rank), or fewer "
    "coordinates, subset='last_layer', a pl.Subnetwork or some sites"
)
