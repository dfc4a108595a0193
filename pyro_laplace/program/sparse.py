"""Products with sparse matrices of the data (a graph's adjacency, a design), by operations with every derivative.

Torch's own can be neither vectorised nor differentiated forwards.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.torch import entries_of, leaves_of, own_buffers
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.data import Batch

_PRODUCTS = {"matmul", "__matmul__", "mm", "mv", "_sparse_mm"}
_REVERSED = {"__rmatmul__"}


def has_sparse(model: Callable[..., Any], batch: Batch) -> bool:
    """Whether a sparse tensor is among what the model is called with, or what its modules hold."""
    leaves = leaves_of((batch.args, dict(batch.kwargs)))
    model = getattr(model, "__wrapped__", model)
    if isinstance(model, nn.Module):
        for module in model.modules():
            leaves += [*own_buffers(module).values(), *vars(module).values()]
    return any(isinstance(leaf, Tensor) and leaf.layout != torch.strided for leaf in leaves)


class SparseProducts(TorchFunctionMode):
    """Inside, a product with a sparse matrix is a sum over its entries."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, or what stands for it."""
        kind = getattr(func, "__name__", "")
        if len(args) == 2 and not kwargs and (kind in _PRODUCTS or kind in _REVERSED):
            left, right = reversed(args) if kind in _REVERSED else args
            if _is_sparse(left) and not _is_sparse(right):
                return self._times(left, right)
            if _is_sparse(right) and not _is_sparse(left):
                return self._times(right, left.mT if left.dim() > 1 else left, transposed=True)
        if func is nn.functional.linear and _is_sparse(args[0]):
            return self._linear(*args, **(kwargs or {}))
        try:
            return func(*args, **(kwargs or {}))
        except (RuntimeError, NotImplementedError) as error:
            refused = [leaf for leaf in leaves_of((args, kwargs or {})) if _is_sparse(leaf)]
            if not refused:
                raise
            raise UnsupportedProgram(
                f"{kind} of a sparse matrix of shape {list(refused[0].shape)} ({refused[0].layout}) has no derivative "
                "here, only its products with dense tensors have, by @, torch.sparse.mm or a Linear layer: write it "
                f"so, or give x.to_dense() (torch raised {type(error).__name__}: {error})"
            ) from error

    def _linear(self, sparse: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``S W' + b``."""
        product = self._times(sparse, weight.mT)
        return product if bias is None else product + bias

    def _times(self, sparse: Tensor, dense: Tensor, transposed: bool = False) -> Tensor:
        """``S d`` for d [columns] or [columns, k]; with `transposed`, ``(S' d)'``."""
        rows, columns, values = entries_of(sparse)
        size = sparse.shape[0]
        if transposed:
            rows, columns, size = columns, rows, sparse.shape[1]
        chosen = dense[columns]
        terms = values.reshape(-1, *(1,) * (dense.dim() - 1)) * chosen
        total = dense.new_zeros(size, *dense.shape[1:]).index_add(0, rows, terms)
        return total.mT if transposed and dense.dim() > 1 else total


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout != torch.strided and value.dim() == 2
