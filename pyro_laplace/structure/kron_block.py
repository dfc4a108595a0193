"""A Kronecker-factored precision with an exact diagonal prior, by the eigenbases of its whitened factors.

``Lambda = B (x) A / count + diag(d_out (x) d_in)`` over a weight [out, in]. With ``W = diag(sqrt(d_out (x) d_in))`` and
the eigenbases Q of the whitened B and U of the whitened A,
``Lambda = W (Q (x) U) diag(beta_o alpha_i + 1) (Q (x) U)' W``: nothing is approximated beyond B (x) A.
"""

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.structure.block import Basis, Block
from pyro_laplace.structure.whitened import Whitened, form_of


class KronBlock(Block):
    """Lambda over the entries of a weight [out, in], row by row; its root is ``R = diag(lambda)^1/2 (Q (x) U)' W``."""

    beta: Tensor
    alpha: Tensor
    out_basis: Tensor
    in_basis: Tensor
    eigenvalues: Tensor
    out_scale: Tensor
    in_scale: Tensor

    def __init__(self, outputs: Whitened, inputs: Whitened, numbers: tuple[float, float], count: int = 1) -> None:
        """Join the factors' eigenpairs.

        Args:
            outputs: of B [out, out].
            inputs: of A [in, in].
            numbers: what their forms are multiplied by to be the prior's d_out and d_in; zero for a flat prior.
            count: number of data (and positions) that both factors are sums over.

        Raises:
            IndefiniteCurvature: if Lambda is not positive definite.
        """
        super().__init__()
        flat = 0.0 in numbers
        out_number, in_number = (1.0 if flat else number for number in numbers)
        beta, alpha = outputs.values / (count * out_number), inputs.values / in_number
        eigenvalues = beta.unsqueeze(-1) * alpha + (0.0 if flat else 1.0)
        if not bool((eigenvalues > 0).all()):
            raise IndefiniteCurvature("a Kronecker factor is singular, and the prior is flat")
        self.count, self.flat, self.number = count, flat, out_number * in_number
        self._outputs, self._inputs = outputs, inputs
        self.register_buffer("beta", beta)
        self.register_buffer("alpha", alpha)
        self.register_buffer("out_basis", outputs.basis)
        self.register_buffer("in_basis", inputs.basis)
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("out_scale", (outputs.form * out_number).sqrt())
        self.register_buffer("in_scale", (inputs.form * in_number).sqrt())

    @staticmethod
    def of(
        out_factor: Tensor,
        in_factor: Tensor,
        out_prior: Tensor,
        in_prior: Tensor,
        count: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> "KronBlock":
        """``B (x) A / count + diag(d_out (x) d_in)``.

        Args:
            out_factor: B [out, out].
            in_factor: A [in, in].
            out_prior: d_out [out]; all zeros for a flat prior.
            in_prior: d_in [in].
            count: number of data (and positions) that both factors are sums over.
            dtype: in which the eigenbases are computed.

        Returns:
            the block.
        """
        (out_form, out_number), (in_form, in_number) = form_of(out_prior), form_of(in_prior)
        outputs, inputs = Whitened.of(out_factor, out_form, dtype), Whitened.of(in_factor, in_form, dtype)
        return KronBlock(outputs, inputs, (out_number, in_number), count)

    @property
    def size(self) -> int:
        """Number of entries of the weight."""
        return self.eigenvalues.numel()

    def log_det(self) -> Scalar:
        """Sum of log eigenvalues, plus log det W^2."""
        out, fan_in = self.eigenvalues.shape
        return self.eigenvalues.log().sum() + 2 * (
            fan_in * self.out_scale.log().sum() + out * self.in_scale.log().sum()
        )

    def color(self, white: Draws) -> Draws:
        """W^-1 (Q (x) U) (z / sqrt lambda)."""
        return self._unscale(self._from_basis(self._weights(white) / self.eigenvalues.sqrt())).to(white)

    def whiten(self, deviation: Draws) -> Draws:
        """sqrt lambda (Q (x) U)' W d."""
        return (
            (self._to_basis(self._scale(self._weights(deviation))) * self.eigenvalues.sqrt()).flatten(-2).to(deviation)
        )

    def solve(self, vector: Tensor) -> Tensor:
        """W^-1 (Q (x) U) diag(1 / lambda) (Q (x) U)' W^-1 v."""
        scaled = self._weights(vector) / self.out_scale.unsqueeze(-1) / self.in_scale
        return self._unscale(self._from_basis(self._to_basis(scaled) / self.eigenvalues)).to(vector)

    def variance(self) -> Theta:
        """The diagonal of Lambda^-1, row by row."""
        inner = self.out_basis.square() @ self.eigenvalues.reciprocal() @ self.in_basis.square().mT
        return (inner / self.out_scale.square().unsqueeze(-1) / self.in_scale.square()).reshape(-1)

    def to_dense(self) -> Matrix:
        """Lambda [params, params]."""
        root = self.whiten(torch.eye(self.size, dtype=self.eigenvalues.dtype, device=self.eigenvalues.device))
        return root @ root.mT

    def push(self, rows: Tensor) -> Tensor:
        """Lambda^-1/2 (Q (x) U)' W^-1 j."""
        scaled = self._weights(rows) / self.out_scale.unsqueeze(-1) / self.in_scale
        return (self._to_basis(scaled) / self.eigenvalues.sqrt()).flatten(-2).to(rows)

    def diagonal_basis(self, index: Tensor, dtype: torch.dtype) -> Basis | None:
        """W_out^-1 Q and W_in^-1 U, where the rows cover the weight as a whole."""
        if index.shape != self.eigenvalues.shape or not torch.equal(
            index.reshape(-1), torch.arange(self.size).to(index)
        ):
            return None
        variances = (self.eigenvalues * self.number).reciprocal()
        return Basis(self._outputs.root(dtype), self._inputs.root(dtype), variances.to(dtype))

    def _weights(self, x: Tensor) -> Tensor:
        return x.to(self.eigenvalues).reshape(*x.shape[:-1], *self.eigenvalues.shape)

    def _scale(self, weights: Tensor) -> Tensor:
        return weights * self.out_scale.unsqueeze(-1) * self.in_scale

    def _unscale(self, weights: Tensor) -> Tensor:
        return (weights / self.out_scale.unsqueeze(-1) / self.in_scale).flatten(-2)

    def _to_basis(self, weights: Tensor) -> Tensor:
        return self.out_basis.mT @ weights @ self.in_basis

    def _from_basis(self, weights: Tensor) -> Tensor:
        return self.out_basis @ weights @ self.in_basis.mT
