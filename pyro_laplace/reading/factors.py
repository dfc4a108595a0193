"""From a run to the factors of a root: which sites are held by products, which by dense columns.

Axis letters as in `records`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.contraction import Lookup, Scale
from pyro_laplace.capture.layers import Layer, layers_of
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.capture.watch import Captured
from pyro_laplace.curvature.root import Root
from pyro_laplace.program.run import Site
from pyro_laplace.reading.gradients import Gradients, dense_rows
from pyro_laplace.reading.padding import marks_of, padding
from pyro_laplace.reading.records import Entries, Factors, Product
from pyro_laplace.reading.verification import independent
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Factored:
    """A curvature's root on a chunk, whose program has been found to have the structure that factors need.

    Attributes:
        run: the program's run.
        root: the curvature's root.
        gradients: of its columns, by observed site.
        layers: the products with the free sites' entries.
        scales: the free sites' entries that meet an activation of their own.
        lookups: the free sites' entries that the data choose one by one.
        scale_index: their coordinates in theta, ascending.
        dense_index: coordinates in theta that were not captured.
        position: of each coordinate of theta among the free ones.
    """

    run: CapturedRun
    root: Root
    gradients: dict[str, Gradients]
    layers: list[Layer]
    scales: list[Scale]
    lookups: list[Lookup]
    scale_index: Tensor
    dense_index: Tensor
    position: Tensor

    @property
    def leaves_out(self) -> bool:
        """Whether there are dense columns of what products could hold: all but constrained sites."""
        chosen = set(self.dense_index.tolist())
        layout, latents = self.run.program.layout, self.run.program.latents
        return any(place.start in chosen and not latents[name].constrained for name, place in layout.items())

    def factors(self, elements: int, paired: bool = True) -> Iterator[tuple[str, Factors]]:
        """The factors of each observed site that the root covers.

        Args:
            elements: of gradients that are held at a time; where all columns have more, they come in slices.
            paired: whether inputs are summed apart from gradients, so that it matters which positions are data.

        Yields:
            the site's name and columns of the root, whose A'A add up; at least once for each site.
        """
        live = self.root.live()
        dense = dense_rows(self.run, self.root, self.dense_index)
        for name, gradients in self.gradients.items():
            counted: list[Tensor | None] = [None for _ in self.layers]
            if paired:
                counted = self._counted(gradients, self.root.sites[name].masked)
            for factors in self._of_site(gradients, dense[name], elements, counted):
                yield name, factors if bool(live.all()) else factors.of_data(live)

    def _counted(self, gradients: Gradients, masked: Tensor | None) -> list[Tensor | None]:
        """Of each layer, which positions are data [n, t]: not masked ones that reach no other output, nor padding.

        Args:
            gradients: of the site's columns.
            masked: positions of the site that weigh nothing [n, t], if there are any.

        Returns:
            None where all are.
        """
        marks = marks_of(self.run.chunk) if len(self.gradients) == 1 else []  # of one site's gradients it can be told
        marks = [each for each in marks if any(each.shape == layer.inputs.shape[:2] for layer in self.layers)]
        if (masked is None and not marks) or not len(gradients.columns):
            return [None for _ in self.layers]
        _, mixed, _ = gradients.mixtures(torch.Generator().manual_seed(0), 0)
        reached = [layer.use.positions(mixed[id(layer.use.output)].unsqueeze(0))[0].any(-1) for layer in self.layers]
        counted: list[Tensor | None] = []
        for own in reached:
            by_any = torch.stack([each for each in reached if each.shape == own.shape]).any(0)
            left_out = padding(marks, by_any)
            if masked is not None and masked.shape == own.shape:
                left_out = left_out | (masked & ~own)
            counted.append(~left_out if bool(left_out.any()) else None)
        return counted

    def _of_site(
        self, gradients: Gradients, rows: Tensor, elements: int, among: list[Tensor | None]
    ) -> Iterator[Factors]:
        others = torch.ones(gradients.count, dtype=torch.bool, device=rows.device)
        others[gradients.columns] = False
        rest = functional.pad(rows[:, others].flatten(0, 1), (0, len(self.scale_index)))
        rest = rest[(rest != 0).any(1)]
        loose = self.position[torch.cat([self.dense_index, self.scale_index])]
        for columns, found in gradients.slices(elements):
            products = [
                Product(
                    self.position[layer.index],
                    layer.inputs,
                    layer.use.positions(found[id(layer.use.output)]).transpose(0, 1),
                    layer.has_bias,
                    counted,
                )
                for layer, counted in zip(self.layers, among, strict=True)
            ]
            scaled = _scaled(self.scales, self.scale_index, found, (len(rows), len(columns)))
            entries = [
                Entries(self.position[each.index], each.rows(found[id(each.output)]).transpose(0, 1))
                for each in self.lookups
            ]
            yield Factors(products, loose, torch.cat([rows[:, columns], scaled], -1), rest, entries)
            rest = rest[:0]


def factor(run: CapturedRun, root: Root, anchor: Anchor, check: bool = True) -> Factored | None:
    """Factor a curvature's root; None where the program does not have the structure that this needs.

    All sites of the root are of equally many data. Of a program that has other sites besides, the products count that
    lead to these.

    Args:
        run: the program's run, captured.
        root: on its chunk.
        anchor: theta and its free coordinates, whole sites.
        check: whether to find out that rows are independent and all uses seen, unless another run of the pass has.

    Returns:
        the factored root, or None.
    """
    program = run.program
    counts = {site_root.num_obs for site_root in root.sites.values()}
    count = counts.pop() if len(counts) == 1 else None
    if run.capture is None or count is None:
        return None
    apart = any(_num_data(site) != count for site in run.run.observed.values())
    among = _reached(run, root) if apart else None
    captured = run.capture.captured(count, lambda: _first_datum(run, root), among)
    free = anchor.whole_sites
    uncaptured = {name for name in free if program.latents[name].constrained} | (captured.opaque & free)
    uncaptured |= _in_several_ways(run, captured)
    names = free - uncaptured
    held = captured.among(lambda index: run.site_of(index) in names)
    gradients = {name: Gradients.of_site(run, name, site, held.outputs) for name, site in root.sites.items()}
    question = f"rows of {', '.join(root.sites)}" + (", one datum" if count == 1 else ""), names
    if check and question not in run.verdicts:
        score = None if apart else run.score
        run.verdicts[question] = independent(run, gradients, held, names, score, settings.streamed_elements)
    if check and not run.verdicts[question]:
        return None
    dense = [torch.arange(place.start, place.stop) for name, place in program.layout.items() if name in uncaptured]
    nothing = torch.zeros(0, dtype=torch.long, device=anchor.theta.device)
    return Factored(
        run,
        root,
        gradients,
        layers_of(held.uses),
        held.scales,
        held.lookups,
        torch.cat([nothing, *(scale.index for scale in held.scales)]).unique(),
        torch.cat([nothing, *(each.to(nothing) for each in dense)]),
        anchor.positions,
    )


def _in_several_ways(run: CapturedRun, captured: Captured) -> set[str]:
    """The sites that are a scale and a weight at once, or are chosen from and used in another way besides."""
    weights, scales, chosen = (
        [run.site_of(each.index) for each in found] for found in (captured.uses, captured.scales, captured.lookups)
    )
    several = {name for name in chosen if name in weights or name in scales or chosen.count(name) > 1}
    if scales and weights:
        index = torch.cat([use.index.reshape(-1) for use in captured.uses])
        twice = (each for each in captured.scales if bool(torch.isin(each.index, index).any()))
        several |= {run.site_of(each.index) for each in twice}
    return several


def _num_data(site: Site) -> int | None:
    return site.fn.batch_shape[0] if site.fn.batch_shape else None


def _reached(run: CapturedRun, root: Root) -> set[int]:
    """The captured outputs, by id, that the outputs of a root's sites are made of."""
    outputs = [] if run.capture is None else run.capture.outputs()
    with torch.enable_grad():
        total = torch.stack([site.outputs(run.run.observed[name]).sum() for name, site in root.sites.items()]).sum()
    if not outputs or not total.requires_grad:
        return set()
    edges = [output.edge for output in outputs]
    grads = torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True)
    return {id(output) for output, g in zip(outputs, grads, strict=True) if g is not None}


def _first_datum(run: CapturedRun, root: Root) -> Tensor:
    with torch.enable_grad():
        first = sum(site.by_datum(run.run.observed[name])[0][0].sum() for name, site in root.sites.items())
    return torch.as_tensor(first)


def _scaled(scales: list[Scale], index: Tensor, found: dict[int, Tensor], shape: tuple[int, int]) -> Tensor:
    """Rows of the root [n, k, d] in the coordinates of scales, float64; those of one used more than once add up."""
    total = torch.zeros(*shape, len(index), dtype=torch.float64, device=index.device)
    for scale in scales:
        rows = scale.rows(found[id(scale.output)]).transpose(0, 1).double()
        total.index_add_(2, torch.searchsorted(index, scale.index), rows)
    return total
