"""Gradients of a root's columns: one backward pass a column gives those of every captured output at once.

Axis letters as in `records`; b further axes of the data's batch, e entries of an event that a row sums over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_laplace._autodiff import column_blocks, without_speed_notes
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.contraction import Output
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.root import Root, SiteRoot
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Gradients:
    """The columns of one observed site's root, to be pulled back to captured outputs.

    Attributes:
        eta: the site's outputs f [n, b, e, o], with their graph.
        vectors: sqrt(w) S [n, b, e, o, s]; column (b, s) of the root.
        outputs: the captured outputs.
        columns: those columns, numbered through, that any of the outputs reaches.
        known: their gradients by the output's id, where they have been pulled back already.
    """

    eta: Tensor
    vectors: Tensor
    outputs: list[Output]
    columns: Tensor
    known: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def of_site(run: CapturedRun, name: str, root: SiteRoot, outputs: list[Output]) -> "Gradients":
        """The columns of a site's root.

        A datum with several entries has as many columns for each column of S; that none of these reaches an output (a
        known scale) is seen by one backward pass for all of them.

        Returns:
            the columns, those that reach an output numbered.
        """
        with torch.enable_grad():
            eta, vectors = root.by_datum(run.run.observed[name])
        outputs = list({id(output): output for output in outputs}.values())
        b, s = vectors.shape[1], vectors.shape[-1]
        columns = torch.arange(b * s, device=vectors.device)
        gradients = Gradients(eta, vectors, outputs, columns)
        if not outputs or not eta.requires_grad:
            return Gradients(eta, vectors, outputs, columns[:0])
        if b == 1:
            return gradients
        reached = [any(bool(g.any()) for g in gradients.pull(vectors[..., k].to(eta))) for k in range(s)]
        return Gradients(eta, vectors, outputs, columns[torch.tensor(reached, device=columns.device).repeat(b)])

    @property
    def count(self) -> int:
        """Number of columns of the root."""
        return self.vectors.shape[1] * self.vectors.shape[-1]

    @property
    def elements(self) -> int:
        """Of the gradients of one column."""
        return sum(output.zeros().numel() for output in self.outputs)

    def mixtures(
        self, generator: torch.Generator, elements: int
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Gradients of a random mix of the columns, alike for all data and with a random weight u for each of them.

        Args:
            generator: gives the randomness.
            elements: if all columns have no more, they are pulled back on the occasion, and known from then on.

        Returns:
            u [n], and by the output's id the gradients g of ``sum_n z_n`` and h of ``sum_n u_n z_n``.
        """
        mix = torch.randn(len(self.columns), generator=generator).to(self.eta)
        u = torch.randn(len(self.eta), generator=generator).to(self.eta)
        by_datum = u.reshape(-1, 1, 1, 1)
        if len(self.columns) * self.elements <= elements and not self.known:
            weights = self._weights(self.columns)
            mixed = torch.tensordot(mix, weights, 1)
            found = pull_each(self.eta, torch.cat([weights, torch.stack([mixed, mixed * by_datum])]), self.outputs)
            self.known.update({id(output): g[:-2] for output, g in zip(self.outputs, found, strict=True)})
            plain, last = [g[-2] for g in found], [g[-1] for g in found]
        else:
            weights = self._mix(mix)
            plain, last = self.pull(weights), self.pull(weights * by_datum)
        ids = [id(output) for output in self.outputs]
        return u, dict(zip(ids, plain, strict=True)), dict(zip(ids, last, strict=True))

    def mixed_weights(self, generator: torch.Generator) -> Tensor:
        """The weights of eta [n, b, e, o] of which `mixtures` pulls h back, for the same randomness."""
        mix = torch.randn(len(self.columns), generator=generator).to(self.eta)
        u = torch.randn(len(self.eta), generator=generator).to(self.eta)
        return self._mix(mix) * u.reshape(-1, 1, 1, 1)

    def _mix(self, mix: Tensor) -> Tensor:
        """The columns' mix as weights of eta [n, b, e, o], without the columns one by one."""
        b, s = self.vectors.shape[1], self.vectors.shape[-1]
        whole = mix.new_zeros(b * s).index_copy(0, self.columns, mix).reshape(b, 1, s, 1).to(self.vectors)
        return (self.vectors @ whole)[..., 0].to(self.eta)

    def slices(self, elements: int) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
        """Pull the columns back.

        Args:
            elements: of the outputs' gradients that are made at a time.

        Yields:
            some of the columns [k], and by the output's id its gradients `[k, *shape]`.
        """
        if not len(self.columns):
            yield self.columns, {id(output): output.zeros().unsqueeze(0)[:0] for output in self.outputs}
            return
        if self.known:
            yield self.columns, self.known
            return
        step = max(1, elements // max(1, self.elements))
        for columns in self.columns.split(step):
            found = self.of_columns(columns)
            yield columns, {id(output): g for output, g in zip(self.outputs, found, strict=True)}

    def pull(self, weights: Tensor, **options: bool) -> list[Tensor]:
        """Gradients of ``sum weights * eta`` in the outputs; with `is_grads_batched`, of several such sums."""
        return pull(self.eta, weights, self.outputs, **options)

    def of_columns(self, columns: Tensor) -> list[Tensor]:
        """Gradients [k, ...] of some columns; where they come one by one, without the weights of all of them."""
        if len(columns) > 1 and not _convolves(self.eta):
            return pull_each(self.eta, self._weights(columns), self.outputs)
        stacked = [g.new_empty(len(columns), *g.shape) for g in (output.zeros() for output in self.outputs)]
        for k, column in enumerate(columns.split(1)):
            for total, g in zip(stacked, self.pull(self._weights(column)[0]), strict=True):
                total[k] = g
        return stacked

    def _weights(self, columns: Tensor) -> Tensor:
        """Columns of S as weights of eta [k, n, b, e, o]."""
        s = self.vectors.shape[-1]
        if self.vectors.shape[1] == 1:
            whole = len(columns) == s
            return (self.vectors if whole else self.vectors[..., columns]).movedim(-1, 0).to(self.eta)
        weights = self.eta.new_zeros(len(columns), *self.eta.shape)
        for k, column in enumerate(columns.tolist()):
            weights[k, :, column // s] = self.vectors[:, column // s, ..., column % s].to(self.eta)
        return weights


def pull(eta: Tensor, weights: Tensor, outputs: list[Output], **options: bool) -> list[Tensor]:
    """Gradients of ``sum weights * eta`` in some outputs; with `is_grads_batched`, of several such sums."""
    edges = [output.edge for output in outputs]
    grads = torch.autograd.grad(eta, edges, weights, retain_graph=True, allow_unused=True, **options)
    lead = weights.shape[: weights.dim() - eta.dim()]
    zeros = (output.zeros().expand(*lead, *output.zeros().shape) for output in outputs)
    return [zero if g is None else g for g, zero in zip(grads, zeros, strict=True)]


def pull_each(eta: Tensor, weights: Tensor, outputs: list[Output]) -> list[Tensor]:
    """Several of `pull` by one vectorised pass where that can be; a loop of passes beats it for convolutions.

    Returns:
        by output, the gradients `[k, *shape]` of the sums by weights [k, ...].
    """
    if not outputs:
        return []
    if len(weights) > 1 and not _convolves(eta):
        try:
            with without_speed_notes():
                return pull(eta, weights, outputs, is_grads_batched=True)
        except RuntimeError:  # an operation that cannot be vectorised; an error of another kind comes again below
            pass
    rows = [pull(eta, each, outputs) for each in weights]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def dense_rows(run: CapturedRun, root: Root, index: Tensor) -> dict[str, Tensor]:
    """Rows of the root in the coordinates of some sites.

    Row and column exchange roles: the gradient of ``u' z`` in the coordinates is linear in u, and its own gradient in u
    is a column. Where an operation cannot be differentiated twice, by forward mode.

    Args:
        run: the program's run.
        root: of the curvature on its chunk.
        index: the sites' coordinates in theta [d], ascending.

    Returns:
        observed site name to rows [n, k, d] in float64.
    """
    if not len(index):
        return {name: site.vectors.new_zeros(len(site.vectors), site.columns, 0) for name, site in root.sites.items()}
    chosen = set(index.tolist())
    leaves = [leaf for name, leaf in run.leaves.items() if run.program.layout[name].start in chosen]
    with torch.enable_grad():
        whitened = {name: site.whiten(run.run.observed[name]) for name, site in root.sites.items()}
    try:
        return {
            name: _jacobian(whitened[name], leaves).reshape(-1, site.columns, len(index))
            for name, site in root.sites.items()
        }
    except RuntimeError:  # an operation without a second derivative; an error of another kind comes again below
        dense = Anchor(run.anchor.theta, index, run.program.latents)
        joined = torch.cat([block for _, block in column_blocks(dense.on(root), dense.free)]).mT  # rows d
        sizes = [len(site.vectors) * site.columns for site in root.sites.values()]
        parts = zip(root.sites.items(), joined.split(sizes), strict=True)
        return {name: part.reshape(-1, site.columns, len(index)) for (name, site), part in parts}


def _jacobian(z: Tensor, leaves: list[Tensor]) -> Tensor:
    """The Jacobian of z in some leaves, [*z, d], by reverse over reverse mode."""
    with torch.enable_grad():
        u = torch.zeros_like(z, requires_grad=True)
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        pulled = torch.cat(torch.autograd.grad(z, leaves, u, **options)) if z.requires_grad else u.new_zeros(0)
    size = sum(leaf.numel() for leaf in leaves)
    if not pulled.requires_grad:
        return z.new_zeros(*z.shape, size).detach()
    step = max(1, settings.pass_elements // max(1, z.numel()))
    basis = torch.eye(size, dtype=pulled.dtype, device=z.device).split(step)
    options = {"retain_graph": True, "is_grads_batched": True}
    with without_speed_notes():
        return torch.cat([torch.autograd.grad(pulled, u, rows, **options)[0] for rows in basis]).movedim(0, -1)


def _convolves(tensor: Tensor) -> bool:
    """Whether a convolution is among the operations that a tensor was made by."""
    seen, pending = set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if "Convolution" in node.name():
            return True
        seen.add(node)
        pending += [each for each, _ in node.next_functions]
    return False
