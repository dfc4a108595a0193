"""What a structure is built of, and the dense block that every structure falls back to."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import IndefiniteCurvature, LaplaceWarning
from pyro_laplace.capture.anchor import Point
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.program.program import Program
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.data_pass import Pass
from pyro_laplace.structure.dense import Dense
from pyro_laplace.structure.dual import Dual
from pyro_laplace.structure.explain import explain
from pyro_laplace.structure.gram import Gram
from pyro_laplace.structure.previous import Previous
from pyro_laplace.structure.rows import FewRows

Placed = list[tuple[Tensor, Block]]
"""Blocks with their free coordinates."""


Base = Prior | Previous
"""What the likelihood's curvature is added to: the prior's, or a posterior's that new data update."""


@dataclass(frozen=True, eq=False)
class Part:
    """What a structure is built of: the free coordinates of a pass, or some of them.

    Attributes:
        curvature: how the likelihood's curvature is measured.
        visit: the pass over the data.
        point: theta and the coordinates.
        base: what the likelihood's curvature is added to.
    """

    curvature: Curvature
    visit: Pass
    point: Point
    base: Base

    @property
    def program(self) -> Program:
        """The traced program."""
        return self.visit.program

    @property
    def everything(self) -> Tensor:
        """All coordinates by number."""
        return torch.arange(len(self.point.index), device=self.point.index.device)


def whole_block(
    likelihood: Callable[[int], FewRows | Gram], base: Base, part: Part, point: Point
) -> tuple[Tensor, Block]:
    """A block without structure: dual where the likelihood's root has few rows, else dense.

    Args:
        likelihood: makes the likelihood's curvature, by its root if this has no more rows than given; it is used up.
        base: what it is added to.
        part: of which the block is all or a part.
        point: theta and the block's coordinates.

    Returns:
        the block, and the coordinates of its entries by number.

    Raises:
        IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
    """
    made = [likelihood(row_limit(part.curvature, base, len(point.index)))]
    if isinstance(made[0], FewRows):
        try:
            return torch.arange(len(point.index), device=point.index.device), _dual(made[0], base)
        except IndefiniteCurvature:
            made = [made[0].gram()]

    def gram() -> Gram:
        total = made.pop() if made else likelihood(0)
        assert isinstance(total, Gram)
        return total

    return dense_block(gram, base, part, point)


def row_limit(curvature: Curvature, base: Base, size: int) -> int:
    """Rows of the root up to which the dual form is taken: half of the coordinates, where the dense one costs more.

    Args:
        curvature: how the likelihood's curvature is measured.
        base: what it is added to.
        size: number of coordinates.

    Returns:
        the number; 0 where the curvature has no root, or what it is added to is not diagonal, or has rows already and
        leaves no room.
    """
    if curvature.root is None or size <= _SMALL:
        return 0
    limit = min(size // 2, settings.block_bytes // (8 * size))
    if isinstance(base, Previous):
        block = base.block(torch.arange(size, device=base.placed[0][0].device))
        return max(0, limit - len(block.rows)) if isinstance(block, Dual) else 0
    return limit if base.is_diagonal and bool((base.diagonal > 0).all()) else 0


def _dual(few: FewRows, base: Base) -> Dual:
    """The dual block of a base that `row_limit` has found fit."""
    if isinstance(base, Previous):
        block = base.placed[0][1]
        assert isinstance(block, Dual)
        return block.extended(few.whitened(block.scale)[0])
    scale = base.diagonal.sqrt()
    return Dual(scale, *few.whitened(scale))


_SMALL = 200
"""Coordinates up to which the dense form costs nothing."""


def dense_block(likelihood: Callable[[], Gram], base: Base, part: Part, point: Point) -> tuple[Tensor, Block]:
    """A dense block.

    Args:
        likelihood: makes the likelihood's curvature, which is used up; anew where it turns out to be indefinite.
        base: what it is added to.
        part: of which the block is all or a part.
        point: theta and the block's coordinates.

    Returns:
        the block, and the coordinates of its entries by number.

    Raises:
        IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
    """

    def added() -> Gram:
        gram = likelihood()
        base.add_to(gram.lower, gram.order)
        return gram

    gram = added()
    try:
        return gram.order, Dense(gram.lower)
    except IndefiniteCurvature:
        gram = added()
        total = gram.matrix()
        if part.curvature.root is None:
            raise IndefiniteCurvature(explain(total, part.program, point, part.curvature)) from None
    # the likelihood part is positive semi-definite by construction, so the prior's convex directions are to blame
    try:
        values, vectors = torch.linalg.eigh(base.matrix())
        convex = (vectors * values.clamp(max=0)) @ vectors.mT
        block = Dense((total - convex)[gram.order.unsqueeze(1), gram.order])
    except (IndefiniteCurvature, LinAlgError):
        raise IndefiniteCurvature(explain(total, part.program, point, part.curvature)) from None
    warnings.warn(
        f"the log prior is convex at this point in {int((values < 0).sum())} directions, and the data do not make up "
        "for it; their curvature was set to zero. The posterior is wider there than this approximation can say",
        LaplaceWarning,
        stacklevel=4,
    )
    return gram.order, block


def of_sites(names: Iterable[str], program: Program, point: Point) -> Tensor:
    """Where the coordinates of some sites lie among a point's free ones, ascending."""
    taken = torch.zeros(len(point.index), dtype=torch.bool, device=point.index.device)
    for name in names:
        place = program.layout[name]
        taken |= (point.index >= place.start) & (point.index < place.stop)
    return taken.nonzero()[:, 0]
