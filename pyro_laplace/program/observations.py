"""Observed values that their distribution cannot have, which pass unseen where validation is off."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_laplace._compat.pyro import is_delta
from pyro_laplace._errors import InvalidData
from pyro_laplace.program.entries import Support, counted_entries
from pyro_laplace.program.run import Fill, Run, Site
from pyro_laplace.unwrap import innermost

_DROP = "leave such data out, or mask them with poutine.mask or obs_mask"

_MASK = "mask missing ones with poutine.mask or obs_mask, or leave them out"


@dataclass(frozen=True)
class Place:
    """Where a run's data come from, for what an error says of it.

    Attributes:
        first: number of the first datum in a pass.
        indices: of the plates that draw their own, as in a `Chunk`.
        batch: number of the batch, from 0 on; None where there is one.
    """

    first: int = 0
    indices: Mapping[str, Tensor] | None = None
    batch: int | None = None

    def of(self, site: Site, index: list[int]) -> str:
        """An entry of a site, as one indexes the data."""
        index = list(index)
        batch_dims = site.value.dim() - len(site.fn.event_shape)
        for frame in site.frames:
            axis = batch_dims + frame.dim
            if self.indices and frame.name in self.indices and 0 <= axis < len(index):
                index[axis] = int(self.indices[frame.name][index[axis]])
        if index and batch_dims:
            index[0] += self.first
        return f"{index}" + ("" if self.batch is None else f" of batch {self.batch}")


ANYWHERE = Place()
"""Of the only batch, or the first."""


@dataclass(frozen=True)
class Expected:
    """Sites that are to be observed, for what a fill of latent sites, and an error, say of one that is not.

    Attributes:
        names: of the sites.
        entries: of a network's program, by site the name that its values have in a batch.
        data: the argument that the data were given as.
    """

    names: frozenset[str]
    entries: Mapping[str, str]
    data: str

    def or_else(self, fill: Fill) -> Fill:
        """A fill that refuses a site of these, which has come without a value, and is `fill` elsewhere."""

        def filled(site: Mapping[str, Any]) -> Tensor:
            return self._refuse(site["name"]) if site["name"] in self.names else fill(site)

        return filled

    def refuse_summed(self, run: Run) -> None:
        """Refuse a run on which one of these is a discrete site to sum out.

        Args:
            run: the program's run.
        """
        for name in run.discrete:
            if name in self.names:
                self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        entry = self.entries.get(name)
        how = (
            f"with the inputs, as y in {self.data}=(x, y) for model(x, y=None) with pyro.sample({name!r}, ..., obs=y)"
            if entry is None
            else f"beside the network's inputs, or as the entry {entry!r} of a batch by name"
        )
        raise InvalidData(f"{self.data} has no values of the observed site {name!r}: give them {how}")


@torch.no_grad()
def refuse_outside_support(
    run: Run, derived: Collection[str] = (), place: Place = ANYWHERE, leaves: bool = False
) -> None:
    """Refuse observed values that their distribution cannot have, or that are not finite.

    Masked entries do not count, nor those of a scale of zero. A density of the user's own has the last word: where it
    is finite, its support may be said wrongly.

    Args:
        run: the program's run.
        derived: observed sites that are no data.
        place: where the run's data come from.
        leaves: whether the run's latent values are leaves of a graph, which shows what bounds depend on them; else no
            bound of a continuous support that is a tensor is believed.

    Raises:
        InvalidData: naming the site, the value, where it is, the support, and what to do.
    """
    for name, site in run.observed.items():
        if site.given and name not in derived and not is_delta(site.fn):
            _refuse_shape(site, bool(run.discrete))
            _refuse_dtype(site)
            _refuse(site, place, leaves, bool(run.discrete))


def _refuse_shape(site: Site, switched: bool) -> None:
    """Refuse data [n, 1] of a distribution [n], or the other way round: in a plate of n they are n times n data."""
    batch, value = site.fn.batch_shape, site.value
    own = value.shape[: value.dim() - len(site.fn.event_shape)]
    if switched or not site.frames:
        return
    try:
        both = torch.broadcast_shapes(batch, own)
    except RuntimeError:
        both = None
    plates = {frame.dim for frame in site.frames}
    if both is not None:
        free = [axis for axis in range(-len(both), 0) if both[axis] > 1 and axis not in plates]
        sizes = [[1 if -axis > len(shape) else shape[axis] for shape in (batch, own)] for axis in free]
        if all(1 not in pair for pair in sizes):
            return
    made = "do not go together" if both is None else f"are {list(both)} data together"
    raise InvalidData(
        f"the observed site {site.name!r} has values of shape {list(value.shape)} and a distribution of batch shape "
        f"{list(batch)}, which {made} in the plates {sorted(frame.name for frame in site.frames)}: give both the same "
        "shape, as y.squeeze(-1) or f.squeeze(-1) does"
    )


def _refuse_dtype(site: Site) -> None:
    """Refuse labels that their distribution cannot compute with."""
    if isinstance(innermost(site.fn), torch.distributions.Bernoulli) and not site.value.is_floating_point():
        raise InvalidData(
            f"the observed site {site.name!r} has values of {site.value.dtype}, which a Bernoulli does not "
            "take: give y.float()"
        )


def _refuse(site: Site, place: Place, leaves: bool, switched: bool) -> None:
    support = Support.of(site.fn)
    unsure = any(not leaves or bound.requires_grad for bound in support.bounds.values()) and not support.is_discrete
    if unsure or (switched and support.bounds):
        support = support.of_no_tensor()
    value, base = site.value, innermost(site.fn)
    finite, inside = support.by_check(value.isfinite(), every=True), support.holds(value)
    if isinstance(base, dist.ZeroInflatedDistribution):
        inside = inside | (value == 0)
    outside = ~inside | ~finite
    border = support.on_border(value) & ~outside
    if not bool((outside | border).any()):
        return
    keep = counted_entries(site.fn, value, site.mask, site.own_scale)
    keep = support.by_check(keep.long().sum_to_size(value.shape) > 0)
    if not bool((keep & (outside | border)).any()):
        return
    bad = keep & outside & finite if _is_theirs(base) else torch.zeros_like(keep)
    if bool((keep & (outside | border) & ~bad).any()):
        bad = bad | keep & outside & _lacks_density(site, support, value)
    if not switched and bool((keep & border).any()):  # a density that is zero or infinite there, and not next to it
        within = torch.where(border.reshape(border.shape + (1,) * support.event_dim), support.inner(value), value)
        there, beside = (_lacks_density(site, support, each) for each in (value, within))
        bad = bad | keep & border & there & ~beside
    if bool(bad.any()):
        raise InvalidData(_refusal(site, support, bad, place))


def _lacks_density(site: Site, support: Support, value: Tensor) -> Tensor:
    """Whether the log density of each entry is not finite, of the shape that the support is checked in."""
    base = innermost(site.fn)
    shape = value.shape[: value.dim() - support.event_dim]
    try:
        log_prob = base.log_prob(value)
    except (RuntimeError, ValueError, IndexError, NotImplementedError):  # a class of -100 is no index
        return torch.ones(shape, dtype=torch.bool, device=value.device)
    shared = len(base.event_shape) - support.event_dim
    none = ~log_prob.isfinite().reshape(log_prob.shape + (1,) * shared)
    return none.expand(torch.broadcast_shapes(none.shape, shape)).long().sum_to_size(shape) > 0


def _is_theirs(base: Any) -> bool:
    """Whether torch or Pyro wrote a distribution's density."""
    return type(base).log_prob.__module__.startswith(("torch.", "pyro."))


def _refusal(site: Site, support: Support, bad: Tensor, place: Place) -> str:
    index = bad.nonzero()[0].tolist()
    value, base = site.value[tuple(index)], innermost(site.fn)
    where = place.of(site, index)
    count = int(bad.sum()) - 1
    others = f" ({count} more like it)" if count else ""
    if not bool(value.isfinite().all()):
        return (
            f"the observed site {site.name!r} has the value {_shown(value)} at {where}{others}, which is not finite: "
            + _DROP
        )
    holds, remedy = _said(support, base, value, bad.shape, index)
    return (
        f"the observed site {site.name!r} has the value {_shown(value)} at {where}{others}, outside the support of its "
        f"{type(base).__name__} distribution, {holds}: {remedy}"
    )


def _shown(value: Tensor) -> str:
    """A number, or the numbers of a vector."""
    numbers = [f"{float(each):.6g}" for each in value.reshape(-1)]
    return numbers[0] if value.dim() == 0 else f"[{', '.join(numbers)}]"


def _said(support: Support, base: Any, value: Tensor, shape: torch.Size, index: list[int]) -> tuple[str, str]:
    """What a support holds, in words, and what to do about another value."""
    constraint, whole = support.constraint, bool((value.double() % 1 == 0).all())
    low, high = (_bound(getattr(constraint, name, None), shape, index) for name in ("lower_bound", "upper_bound"))
    if constraint is constraints.boolean:
        return "0 and 1", "for labels -1 and 1 write (y + 1) / 2; " + _DROP
    if isinstance(base, torch.distributions.Categorical):
        number = f"whole numbers from 0 to {high}"
        return number, f"class labels start at 0 (and are below the number of classes): {_MASK}"
    if support.is_discrete and support.event_dim == 0:
        holds = f"whole numbers from {low} {'on' if high is None else f'to {high}'}"
        more = "" if whole else "counts are whole numbers, give those, or a distribution of real numbers; else "
        over = "no count is larger than its total, check total_count; else " if whole and high is not None else ""
        return holds, more + over + _DROP
    if constraint is constraints.one_hot:
        return (
            "rows of one 1 among zeros",
            "give torch.nn.functional.one_hot(labels, classes).to(logits); else " + _DROP,
        )
    if constraint is constraints.simplex:
        return (
            "positive rows that sum to 1",
            "divide by y.sum(-1, keepdim=True), and lift zeros a little; else " + _DROP,
        )
    if constraint is constraints.unit_interval:
        return "numbers between 0 and 1", "squeeze them into it, as (y * (n - 1) + 0.5) / n does; else " + _DROP
    if low is not None and high is None:
        zero = "values at the border have a density of zero, or infinite; "
        return f"numbers above {low}", f"{zero}give zeros a part of their own, as a hurdle model does; else " + _DROP
    if low is not None:
        return f"numbers between {low} and {high}", _DROP
    return f"{constraint}", _DROP


def _bound(bound: Any, shape: torch.Size, index: list[int]) -> str | None:
    """A bound of the support at an entry of data that are checked in some shape."""
    if bound is None:
        return None
    return f"{float(torch.as_tensor(bound).expand(shape)[tuple(index)]):g}"
