"""A run of the program at a point, off which all is read: densities, gradients, and what consumes the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._typing import Scalar, Theta, Values
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.watch import Capture
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, add_up, log_lik_of
from pyro_laplace.program.run import Run

type Verdicts = dict[tuple[str, frozenset[str]], bool]
"""What was found out of a program, by question and sites."""


@dataclass(frozen=True, eq=False)
class Score:
    """The gradient of the log likelihood of a chunk.

    Attributes:
        log_lik: its value.
        by_term: that of each of its terms, summed over the chunk.
        leaves: by free site, in its coordinates.
        outputs: by id, in the output of every captured operation.
    """

    log_lik: Scalar
    by_term: Mapping[str, Scalar]
    leaves: Mapping[str, Tensor]
    outputs: Mapping[int, Tensor]


@dataclass(eq=False)
class CapturedRun:
    """One chunk's run, with the graph of what it computed from the free sites.

    Attributes:
        program: the traced program.
        anchor: theta and its free coordinates.
        chunk: the data.
        run: the sites.
        leaves: free site to its coordinates in theta, flat; the leaves of the graph. A site of which a part is free is
            there as a whole.
        capture: what consumed the free sites' values; None if that was not asked for.
        verdicts: by sites, whether the program was found to have the structure that factors need ("rows"), or all uses
            were seen ("uses"). The runs of a pass share them: it is found out once.
    """

    program: Program
    anchor: Anchor
    chunk: Chunk
    run: Run = field(default_factory=Run)
    leaves: Mapping[str, Tensor] = field(default_factory=dict)
    capture: Capture | None = None
    verdicts: Verdicts = field(default_factory=dict)

    @staticmethod
    def make(
        program: Program,
        anchor: Anchor,
        chunk: Chunk,
        captured: bool = True,
        params: Values | None = None,
        verdicts: Verdicts | None = None,
    ) -> "CapturedRun":
        """Run the program on a chunk.

        Args:
            program: the traced program.
            anchor: theta and its free coordinates.
            chunk: the data.
            captured: whether the operations that consume the free sites are wanted.
            params: values of `pyro.param`s in place of those that the param store has.
            verdicts: what other runs of the pass found out, which this one adds to.

        Returns:
            the run.
        """
        free, theta, shared = anchor.touched, anchor.theta, {} if verdicts is None else verdicts
        leaves = {name: theta[program.layout[name]].clone().requires_grad_() for name in free}
        with torch.enable_grad():
            values = {
                name: latent.constrain(leaves[name] if name in leaves else theta[latent.slice])
                for name, latent in program.latents.items()
            }
            if not captured:
                run = program.run_at(values, chunk, params=params)
                return CapturedRun(program, anchor, chunk, run, leaves, None, shared)
            index = {
                name: _coordinates(program.latents[name].slice, anchor).reshape(program.latents[name].shape)
                for name in free
                if not program.latents[name].constrained
            }
            with Capture({name: values[name] for name in index}, index) as capture:
                run = program.run_at(values, chunk, params=params)
        return CapturedRun(program, anchor, chunk, run, leaves, capture, shared)

    def release(self) -> None:
        """Let go of the graph, which whoever iterates over runs would otherwise hold beside the next one."""
        self.run, self.leaves, self.capture = Run(), {}, None
        self.__dict__.pop("score", None)

    @property
    def theta(self) -> Theta:
        """All of theta, the free sites' coordinates as leaves of the graph."""
        parts = [self.leaves.get(name, self.anchor.theta[place]) for name, place in self.program.layout.items()]
        return torch.cat(parts)

    def log_prior(self, jacobian: bool, sites: frozenset[str] | None = None) -> Scalar:
        """`Program.log_prior` of this run."""
        return self.program.log_prior_of(self.run, self.theta, jacobian, sites)

    @cached_property
    def score(self) -> Score:
        """The gradient of the log likelihood, in the free sites and in what was captured."""
        outputs = [] if self.capture is None else self.capture.outputs()
        with torch.enable_grad():
            terms = {name: add_up([term]) for name, term in log_lik_of(self.run, self.chunk).items()}
            log_lik = add_up(terms.values(), self.anchor.theta)
        by_term = {name: term.detach() for name, term in terms.items()}
        if not log_lik.requires_grad:
            return Score(log_lik, by_term, {}, {})
        inputs = [*self.leaves.values(), *(output.edge for output in outputs)]
        grads = torch.autograd.grad(log_lik, inputs, retain_graph=True, allow_unused=True)
        count = len(self.leaves)
        leaves = {name: g for name, g in zip(self.leaves, grads, strict=False) if g is not None}
        found = zip(outputs, grads[count:], strict=True)
        return Score(log_lik.detach(), by_term, leaves, {id(o): o.zeros() if g is None else g for o, g in found})

    @property
    def num_data(self) -> int:
        """How many data the chunk has: elements of the first axis of an observed site, the longest of them."""
        shapes = [site.fn.batch_shape for site in self.run.observed.values()]
        return max((shape[0] if shape else 1 for shape in shapes), default=1)

    def site_of(self, index: Tensor) -> str:
        """The latent site that some coordinates of theta belong to."""
        first = int(index.reshape(-1)[0])
        return next(name for name, place in self.program.layout.items() if place.start <= first < place.stop)

    def add_over_free(self, total: Theta, leaves: Mapping[str, Tensor]) -> None:
        """Add something that is given by free site, and zero elsewhere, to a vector over the free coordinates."""
        for name, (span, own) in self.anchor.spans.items():
            if name in leaves:
                total[span] += leaves[name][own]

    def gradient(self, scalar: Scalar, create_graph: bool = False) -> dict[str, Tensor]:
        """The gradient of something that the run computed, by free site that it depends on."""
        if not scalar.requires_grad:
            return {}
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "create_graph": create_graph}
        grads = torch.autograd.grad(scalar, list(self.leaves.values()), **options)
        return {name: g for name, g in zip(self.leaves, grads, strict=True) if g is not None}


def _coordinates(place: slice, anchor: Anchor) -> Tensor:
    return torch.arange(place.start, place.stop, device=anchor.theta.device)
