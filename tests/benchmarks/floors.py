"""What no implementation can do without, in bare torch: C backward passes and the products that the result is made of.

The passes go by output column; the last layer needs none. The factorisation that makes a posterior of the products is
timed apart, because laplace-torch leaves that of a full precision to the first use.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from problems import NOISE, Problem
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Layer:
    """A layer's input as rows a [n, t, i] with a 1 appended, and its output."""

    inputs: Tensor
    output: Tensor

    def positions(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(2).mT if gradient.dim() == 4 else gradient.unsqueeze(1)


def floor(problem: Problem) -> Callable[[], list[Tensor]]:
    """The call to time: what a posterior's factorisation starts from, summed over the batches."""
    one_batch = _last_layer if problem.row.subset == "last_layer" else _all_layers

    def call() -> list[Tensor]:
        total: list[Tensor] = []
        for x, _ in problem.batches:
            parts = one_batch(problem, x)
            total = [a.add_(b) for a, b in zip(total, parts, strict=True)] if total else parts
        return total

    return call


def factorisation(problem: Problem, products: list[Tensor]) -> Callable[[], object]:
    """The call to time: Cholesky of a full precision, eigenbases of Kronecker factors, nothing of a diagonal."""
    if problem.row.structure == "full":
        (matrix,) = products
        return lambda: torch.linalg.cholesky(matrix.double() + torch.eye(len(matrix), dtype=torch.float64))
    if problem.row.structure == "kron":
        return lambda: [torch.linalg.eigh(factor.double()) for factor in products]
    return lambda: None


def _root(problem: Problem, f: Tensor) -> Tensor:
    """S [n, o, k] with S S' the Fisher information."""
    if not problem.row.classification:
        return torch.eye(f.shape[-1]).expand(len(f), -1, -1) / NOISE
    p = f.softmax(-1)
    return p.sqrt().diag_embed() - p.unsqueeze(-1) * p.sqrt().unsqueeze(1)


def _append_one(a: Tensor) -> Tensor:
    return functional.pad(a, (0, 1), value=1.0)


def _all_layers(problem: Problem, x: Tensor) -> list[Tensor]:
    layers, f = [], x
    for module in problem.net:
        a, f = f, module(f)
        if isinstance(module, nn.Conv2d):
            patches = functional.unfold(a.detach(), module.kernel_size, padding=module.padding, stride=module.stride)
            layers.append(Layer(_append_one(patches.mT), f))
        elif isinstance(module, nn.Linear):
            layers.append(Layer(_append_one(a.detach().unsqueeze(1)), f))
    root = _root(problem, f.detach())
    outputs = [layer.output for layer in layers]
    gradients: list[list[Tensor]] = []
    for k in range(root.shape[-1]):
        found = torch.autograd.grad((f * root[:, :, k]).sum(), outputs, retain_graph=k + 1 < root.shape[-1])
        gradients.append([layer.positions(g) for layer, g in zip(layers, found, strict=True)])
    if problem.row.structure == "kron":
        return _kron(layers, gradients)
    if problem.row.structure == "diag":
        return _diag(layers, gradients)
    return [_full(layers, gradients)]


def _kron(layers: list[Layer], gradients: list[list[Tensor]]) -> list[Tensor]:
    factors = []
    for number, layer in enumerate(layers):
        a = layer.inputs.flatten(0, 1)
        factors.append(a.T @ a)
        factors.append(sum((g := column[number].flatten(0, 1)).T @ g for column in gradients))
    return factors


def _diag(layers: list[Layer], gradients: list[list[Tensor]]) -> list[Tensor]:
    result = []
    for number, layer in enumerate(layers):
        if layer.inputs.shape[1] == 1:
            squares = sum(column[number].squeeze(1).square() for column in gradients)
            result.append(squares.T @ layer.inputs.squeeze(1).square())
        else:  # the positions of a datum add up before they are squared
            result.append(sum((column[number].mT @ layer.inputs).square().sum(0) for column in gradients))
    return result


def _full(layers: list[Layer], gradients: list[list[Tensor]]) -> Tensor:
    stacked = [torch.stack([column[number].squeeze(1) for column in gradients], 1) for number in range(len(layers))]
    rows = []
    for left, g in zip(layers, stacked, strict=True):
        row = []
        for right, h in zip(layers, stacked, strict=True):
            row.append(_block(g, left.inputs.squeeze(1), h, right.inputs.squeeze(1)) if len(row) <= len(rows) else None)
        rows.append(row)
    lower = [[rows[i][j] if j <= i else rows[j][i].T for j in range(len(layers))] for i in range(len(layers))]
    return torch.cat([torch.cat(row, 1) for row in lower])


def _block(g: Tensor, a: Tensor, h: Tensor, b: Tensor) -> Tensor:
    """sum_n (g'h)_n (x) (a b')_n, [o i, o' i']."""
    outer = (g.mT @ h).flatten(1).T @ (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)
    shape = (g.shape[2], h.shape[2], a.shape[1], b.shape[1])
    return outer.reshape(shape).transpose(1, 2).reshape(shape[0] * shape[2], shape[1] * shape[3])


@torch.no_grad()
def _last_layer(problem: Problem, x: Tensor) -> list[Tensor]:
    features = problem.net[:-1](x)
    f = problem.net[-1](features)
    a = _append_one(features)
    p = f.softmax(-1)
    if problem.row.structure == "kron":
        gradients = p.sum(0).diag() - p.T @ p if problem.row.classification else torch.eye(f.shape[-1]) * len(f)
        return [a.T @ a, gradients]
    if problem.row.structure == "diag":
        variance = p * (1 - p) if problem.row.classification else torch.ones_like(f) / NOISE**2
        return [variance.T @ a.square()]
    root = _root(problem, f)
    return [_block(root.mT, a, root.mT, a)]
