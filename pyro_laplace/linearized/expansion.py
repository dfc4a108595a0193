"""A program, and the point around which it is linearised: what its runs there show, whatever they are read off by."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._autodiff import push_forward
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.linearized.covariance import Spread
from pyro_laplace.linearized.logits import as_written, predictor
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.own import own_params
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run, Site
from pyro_laplace.program.validate import refuse_unsampled
from pyro_laplace.settings import settings
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.sparse_block import SparseBlock


@dataclass(frozen=True, eq=False)
class Expansion:
    """A program and the mode of a posterior.

    Attributes:
        program: the program.
        watched: the same, with an eye on the logits that it writes where no graph shows them.
        point: the mode, the random coordinates free.
        whole: the same with all coordinates of their sites free.
        precision: of the posterior.
    """

    program: Program
    watched: Program
    point: Anchor
    whole: Anchor
    precision: Precision

    @staticmethod
    def of(model: Callable[..., Any], guide: AutoLaplace) -> "Expansion":
        """The program at the mode of a guide."""
        params = own_params(model, guide)
        program = Program(model, guide.latents, guide.observed, start=guide.theta, params=params)
        point = Anchor(guide.theta, guide.index, guide.latents, guide.curvature)
        watched = replace(program, model=as_written(model))
        return Expansion(program, watched, point, point.whole(), guide.precision)

    @property
    def whole_sites(self) -> bool:
        """Whether each site is random as a whole or not at all."""
        return len(self.whole.index) == len(self.point.index)

    @property
    def is_sparse(self) -> bool:
        """Whether the posterior is held by few entries, and is so large that this pays."""
        sparse = all(isinstance(block, SparseBlock) for block in self.precision.blocks)
        return sparse and self.precision.size > settings.small

    @property
    def holds_sites(self) -> bool:
        """Whether some sites are not random."""
        return len(self.point.touched) < len(self.program.latents)

    def sites(self, chunk: Chunk) -> dict[str, Site]:
        """The observed sites at the mode."""
        return some_data(self._whole(self.watched.run(self.point.theta, chunk)).observed)

    def predictor_at(self, theta: Tensor, name: str, chunk: Chunk) -> Tensor:
        """Eta of an observed site at another theta."""
        return predictor(self.watched.run(theta, chunk).observed[name])

    def graph_run(self, chunk: Chunk) -> CapturedRun:
        """A run with the graph of what it computed, that nothing watches."""
        with torch.enable_grad():
            run = self._whole(self.program.run_at(self._start.values, chunk))
            return CapturedRun(self.program, self.whole, chunk, run, self._start.leaves)

    def captured_run(self, chunk: Chunk) -> CapturedRun:
        """A run that shows what consumed the random sites' values."""
        captured = CapturedRun.make(self.program, self.whole, chunk)
        self._whole(captured.run)
        return captured

    def _whole(self, run: Run) -> Run:
        """A run that sampled every site of the posterior; one that did not is of another program."""
        refuse_unsampled(self.program.latents, {*run.latents, *run.observed})
        return run

    def moved_outputs(self, name: str, outputs: int, chunk: Chunk) -> Tensor:
        """The outputs of a site that depend on random sites: NaN reaches these, as a tangent or as a value."""
        tangent = torch.zeros_like(self.point.theta).index_fill(0, self.point.index, torch.nan)

        def at(theta: Tensor) -> Tensor:
            return self.predictor_at(theta, name, chunk)

        with torch.no_grad():
            varies = push_forward(at, self.point.theta, tangent)[1].isnan().reshape(-1, outputs).any(0)
            if not bool(varies.all()):  # a unit that is off stops a tangent, and not a value
                with suppress(RuntimeError, ValueError):  # of what takes no NaN for an argument
                    varies = varies | at(self.point.theta + tangent).isnan().reshape(-1, outputs).any(0)
        return (varies if bool(varies.any()) else ~varies).nonzero()[:, 0]

    def refuse_randomness(self, chunk: Chunk) -> None:
        """Refuse a program whose predictor differs between two runs that draw different random numbers.

        Args:
            chunk: the inputs.

        Raises:
            UnsupportedProgram: naming the site.
        """
        with torch.no_grad():
            one, other = self.sites(chunk), self.sites(chunk)
        for name, site in one.items():
            if not torch.equal(predictor(site), predictor(other[name])):
                raise UnsupportedProgram(
                    f"the predictor of {name!r} is another one at each call: something random is not a latent site "
                    "(dropout in training mode, say). Call .eval() on the program's modules; to average over what it "
                    "draws, predict with pl.Predictive(pl.linearize(model, guide), guide=guide, num_samples=...)"
                )

    @cached_property
    def random_places(self) -> Tensor:
        """The place of each coordinate of `whole` among the random ones; -1 for one that is not, and at the end."""
        return torch.nn.functional.pad(self.point.positions[self.whole.index], (0, 1), value=-1)

    @cached_property
    def row_spread(self) -> Spread:
        """The covariance of rows over all random coordinates."""
        index = torch.arange(len(self.point.index), device=self.point.theta.device)
        return Spread.of(self.precision, [index.unsqueeze(-1)], self.point.theta.dtype)

    @cached_property
    def _start(self) -> "_Start":
        """What the runs that nothing watches start from: no backward pass goes through them, so that they share it."""
        theta, layout = self.point.theta, self.program.layout
        touched = self.point.touched
        leaves = {name: theta[layout[name]].clone().requires_grad_() for name in touched}
        with torch.enable_grad():
            parts = {name: leaves.get(name, theta[place]) for name, place in layout.items()}
            values = {name: latent.constrain(parts[name]) for name, latent in self.program.latents.items()}
        return _Start(leaves, values)


@dataclass(frozen=True, eq=False)
class _Start:
    """The leaves of a graph, by random site, and the values of all sites that were computed from them."""

    leaves: Mapping[str, Tensor]
    values: Mapping[str, Tensor]


def some_data(sites: dict[str, Site]) -> dict[str, Site]:
    """The sites, of which each has a datum.

    Args:
        sites: observed ones.

    Returns:
        the same.

    Raises:
        UnsupportedProgram: naming one that has none.
    """
    for name, site in sites.items():
        if 0 in site.fn.batch_shape:
            raise UnsupportedProgram(
                f"the observed site {name!r} has no data on this call, its batch shape is "
                f"{tuple(site.fn.batch_shape)}: give at least one input"
            )
    return sites
