"""The run by which a program is traced, captured on the occasion, so that the first pass need not run it again."""

import torch
from torch import Tensor

from pyro_laplace.capture.anchor import Point
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.capture.watch import Capture
from pyro_laplace.data import Batch
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run, Watcher


class FirstRun(Watcher[Capture]):
    """Captures the run that `Program.trace` makes, and gives it to a pass over all coordinates at the same point."""

    def __init__(self) -> None:
        super().__init__(Capture({}, {}))
        self._leaves: dict[str, Tensor] = {}
        self._made: tuple[Run, Batch] | None = None

    def latent(self, name: str, leaf: Tensor, value: Tensor) -> None:
        """A latent site was given a value.

        Args:
            name: the site's name.
            leaf: its coordinates, flat, a leaf of the graph, as long as its map to theta is the identity.
            value: what the program receives.
        """
        start = sum(map(len, self._leaves.values()))
        index = torch.arange(start, start + len(leaf), device=leaf.device)
        self._leaves[name] = leaf
        self._mode.follow(name, value, index.reshape(value.shape))

    def keep(self, run: Run, batch: Batch) -> None:
        """The program has run on a batch."""
        self._made = run, batch

    def at(self, program: Program, point: Point, chunk: Chunk) -> CapturedRun | None:
        """The run, if it is what a pass would make of a chunk; it is given once, and let go of where it is not.

        Args:
            program: as it was traced.
            point: theta and its free coordinates.
            chunk: the first one of the pass.

        Returns:
            the run with what was captured, or None.
        """
        made, self._made = self._made, None
        capture, leaves = self._mode, self._leaves
        self._mode, self._leaves = Capture({}, {}), {}
        if made is None or program.hidden or program.own_indices or program.nesting is not None:
            return None
        run, batch = made
        same_batch = _identical(batch, chunk.batch)
        unmoved = len(point.index) == len(point.theta) and torch.equal(point.theta, program.start)
        identity = not any(latent.constrained for latent in program.latents.values())
        one_dtype = all(leaf.dtype == point.theta.dtype for leaf in leaves.values())
        if not (same_batch and unmoved and identity and one_dtype):
            return None
        return CapturedRun(program, point, chunk, run, leaves, capture)


def _identical(one: Batch, other: Batch) -> bool:
    """Whether two calls have the very same arguments; a loader may make them anew, and others."""
    if len(one.args) != len(other.args) or one.kwargs.keys() != other.kwargs.keys():
        return False
    pairs = [*zip(one.args, other.args, strict=True), *((one.kwargs[key], other.kwargs[key]) for key in one.kwargs)]
    return all(left is right for left, right in pairs)
