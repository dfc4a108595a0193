"""What a family is told of an observed site whose parameters are Gaussian."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GaussianEta:
    """The unconstrained parameters eta of an observed site, Gaussian: what its predictive distribution is made of.

    Covariances are functions, called by whoever needs them: some cost far more than others.

    Attributes:
        site: its name.
        mean: of eta `[*base, outputs]`; base are the data with the entries of each, the event dims of `to_event`.
        kept: the outputs that are uncertain [kept]; a known noise scale is not.
        event: shape of the entries of one datum, which depend on one another; () where it has no `to_event`.
        variance: gives the variances `[*base, kept]`.
        covariance: gives the covariances of one entry's outputs `[*base, kept, kept]`.
        joint: gives those of all entries of a datum, one entry after the other `[*batch, entries * kept, same]`.
        draws: gives draws of eta, some after the others `[some, *base, outputs]`. Of one datum its entries are drawn
            together; what draws of several data have to do with one another is left open.
    """

    site: str
    mean: Tensor
    kept: Tensor
    event: torch.Size
    variance: Callable[[], Tensor]
    covariance: Callable[[], Tensor]
    joint: Callable[[], Tensor]
    draws: Callable[[], Iterator[Tensor]]

    @property
    def outputs(self) -> int:
        """Number of outputs of an entry."""
        return self.mean.shape[-1]

    @property
    def batch(self) -> torch.Size:
        """Shape of the data."""
        base = self.mean.shape[:-1]
        return base[: len(base) - len(self.event)]

    def draw(self) -> Tensor:
        """All draws at once `[draws, *base, outputs]`."""
        some = list(self.draws())
        return some[0] if len(some) == 1 else torch.cat(some)

    def embed(self, values: Tensor) -> Tensor:
        """Values `[..., kept]` as those of all outputs `[..., outputs]`, zero for what is certain."""
        if len(self.kept) == self.outputs:
            return values
        whole = values.new_zeros(*values.shape[:-1], self.outputs)
        return whole.index_copy(-1, self.kept.to(values.device), values)

    def embed_covariance(self, covariance: Tensor) -> Tensor:
        """Covariances `[..., kept, kept]` as those of all outputs `[..., outputs, outputs]`."""
        if len(self.kept) == self.outputs:
            return covariance
        kept = self.kept.to(covariance.device)
        rows = covariance.new_zeros(*covariance.shape[:-2], self.outputs, len(kept)).index_copy(-2, kept, covariance)
        return covariance.new_zeros(*rows.shape[:-1], self.outputs).index_copy(-1, kept, rows)
