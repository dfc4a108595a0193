"""Contractions of an activation with latent entries, and the pairs (input, output gradient) that they come down to.

Every captured operation is one contraction ``output = sum a W``, with a letter for each axis as in `torch.einsum`: a
product, a convolution (with patches), a bias (with ones), an embedding (with one-hot rows), a scale. The letters sort
the axes: n data, t positions that share a weight (sequence, space), i inputs, o outputs, and groups, which a, W and the
output have in common.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from string import ascii_letters

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from pyro_laplace.settings import settings


class Output:
    """The result of an operation, by its place in the autograd graph: an in-place operation may overwrite the tensor.

    Attributes:
        edge: what `torch.autograd.grad` takes in the tensor's place.
        readers: how many operations have read it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.edge: GradientEdge = get_gradient_edge(tensor)
        self.readers = 0
        self._zero = tensor.detach().new_zeros(()).expand(tensor.shape)

    def zeros(self) -> Tensor:
        """A gradient of zeros."""
        return self._zero


@dataclass(frozen=True, eq=False)
class Use:
    """One product of an activation with the entries of latent sites, ``z[n,t,o] = sum_i a[n,t,i] W[o,i]``.

    Attributes:
        index: the entries' coordinates in theta [out, in].
        inputs: a [n, t, in]; ones (or minus ones) for a bias.
        output: the operation's result, or that of the product that a bias was added to.
        positions: brings gradients of `output`, k of them `[k, *shape]`, into the form [k, n, t, out].
        bias: whether a is constant.
    """

    index: Tensor
    inputs: Tensor
    output: Output
    positions: Callable[[Tensor], Tensor]
    bias: bool = False


@dataclass(frozen=True, eq=False)
class Scale:
    """Entries of latent sites that each meet an activation of their own, ``z[n,t,c] = a[n,t,c] w[c]``, or in groups.

    Attributes:
        index: the entries' coordinates in theta [d].
        inputs: a [n, ...].
        output: the operation's result.
        rows: from gradients of `output` `[k, *shape]`, the derivatives in the entries [k, n, d].
    """

    index: Tensor
    inputs: Tensor
    output: Output
    rows: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Lookup:
    """Entries of latent sites that the data choose one by one, ``z[n,j] = w[index[n,j]]``, from a long table.

    Attributes:
        index: the entries' coordinates in theta [n, j].
        output: the operation's result.
        rows: from gradients of `output` `[k, *shape]`, the derivatives in the entries [k, n, j].
    """

    index: Tensor
    output: Output
    rows: Callable[[Tensor], Tensor]

    @staticmethod
    def of(entries: Tensor, words: Tensor, output: Output, count: int) -> "Lookup | None":
        """What ``table[words]`` is to so many data.

        Args:
            entries: coordinates in theta, of the result's shape: the words' axes, and then the table's others.
            words: the chosen rows.
            output: the result.
            count: the number of data.

        Returns:
            the lookup; None if the words have no axis for the data.
        """
        axis = next((axis for axis, size in enumerate(words.shape) if size == count), None)
        if axis is None:
            return None

        def rows(gradients: Tensor) -> Tensor:
            return gradients.movedim(1 + axis, 1).reshape(len(gradients), count, -1)

        return Lookup(entries.movedim(axis, 0).reshape(count, -1), output, rows)


@dataclass(frozen=True, eq=False)
class Contraction:
    """``output = sum inputs * W``, in letters.

    Attributes:
        letters: those of the inputs, of W and of the output.
        inputs: the activation; no latent entries, no gradient.
        index: coordinates in theta of the entries of W.
        shape: the output's, one size a letter; the tensor itself may have some of these axes merged.
        bias: whether the inputs are constant.
        product: the tensor that a bias was added to.
    """

    letters: tuple[str, str, str]
    inputs: Tensor
    index: Tensor
    shape: tuple[int, ...]
    bias: bool = False
    product: Tensor | None = None

    def layouts(self, count: int) -> list[tuple["Contraction", str]]:
        """The axes that the data may lie along, W not having them: of `count` entries, or else of a multiple of them.

        Args:
            count: the number of data.

        Returns:
            the contraction with the letter of its data, for each possibility; an axis that data and positions share is
            split, data first and data last. Of one datum every axis has positions.
        """
        a, w, out = self.letters
        if count == 1:
            free = next(letter for letter in ascii_letters if letter not in a + w + out)
            letters = free + a, w, free + out
            return [(replace(self, letters=letters, inputs=self.inputs.unsqueeze(0), shape=(1, *self.shape)), free)]
        kept = [(letter, size) for letter, size in zip(out, self.shape, strict=True) if letter in a and letter not in w]
        if whole := [letter for letter, size in kept if size == count]:
            return [(self, letter) for letter in whole]
        free = next(letter for letter in ascii_letters if letter not in a + w + out)
        shared = [(letter, size) for letter, size in kept if size > count > 0 and size % count == 0]
        return [
            (self._split(letter, pair, sizes), free)
            for letter, size in shared
            for pair, sizes in ((free + letter, (count, size // count)), (letter + free, (size // count, count)))
        ]

    def _split(self, letter: str, pair: str, sizes: tuple[int, int]) -> "Contraction":
        a, w, out = self.letters
        place = out.index(letter)
        shape = (*self.shape[:place], *sizes, *self.shape[place + 1 :])
        inputs = self.inputs.unflatten(a.index(letter), sizes)
        letters = a.replace(letter, pair), w, out.replace(letter, pair)
        return replace(self, letters=letters, inputs=inputs, shape=shape)

    def belongs(self, data: str, gradient: Tensor | None) -> bool:
        """Whether the gradient of the first datum's outputs is zero everywhere but at the first place of an axis."""
        if gradient is None:
            return True
        return not bool(gradient.reshape(self.shape).movedim(self.letters[2].index(data), 0)[1:].any())

    def uses(self, data: str, output: Output) -> list[Use | Scale]:
        """What the contraction is as products.

        Args:
            data: the letter of the data.
            output: the operation's result.

        Returns:
            one product, or one a group, or a scale.
        """
        a, w, out = self.letters
        size = dict(zip(out, self.shape, strict=True)) | dict(zip(w, self.index.shape, strict=True))
        count = size[data]
        kept = [letter for letter in out if letter in a and letter not in w]
        positions = "".join(letter for letter in kept if letter != data)
        groups = "".join(letter for letter in out if letter in a and letter in w)
        outputs = "".join(letter for letter in out if letter in w and letter not in a)
        inputs = "".join(letter for letter in w if letter not in out)
        t, c, o, i = (prod(size[letter] for letter in part) for part in (positions, groups, outputs, inputs))
        order = [0, *(1 + out.index(letter) for letter in data + positions + groups + outputs)]

        def arrange(g: Tensor) -> Tensor:
            return g.reshape(len(g), *self.shape).permute(order).reshape(len(g), count, t, c, o)

        index = self.index.permute([w.index(letter) for letter in groups + outputs + inputs]).reshape(c, o, i)
        summed = _arranged(self.inputs, a, data + positions + groups + inputs).reshape(count, t, c, i)
        if c > settings.most_groups:
            rows = partial(_rows_of_groups, arrange, summed)
            return [Scale(index.reshape(-1), summed, output, rows)]
        return [
            Use(index[group], summed[:, :, group], output, lambda g, group=group: arrange(g)[..., group, :], self.bias)
            for group in range(c)
        ]


def _arranged(inputs: Tensor, letters: str, wanted: str) -> Tensor:
    """Axes in the wanted order, the others summed over."""
    if len(letters) == len(wanted):
        return inputs.permute([letters.index(letter) for letter in wanted])
    return torch.einsum(f"{letters}->{wanted}", inputs)


def _rows_of_groups(arrange: Callable[[Tensor], Tensor], inputs: Tensor, gradients: Tensor) -> Tensor:
    """Rows [k, n, c o i] of a product with many groups c, from gradients of its output."""
    return torch.einsum("kntco,ntci->kncoi", arrange(gradients), inputs).flatten(2)


def contraction(
    letters: tuple[str, str, str], inputs: Tensor, index: Tensor, shape: tuple[int, ...] | torch.Size
) -> Contraction | None:
    """A contraction, brought into the form that has no broadcasting and no latent entry expanded along an axis.

    Args:
        letters: of the inputs, of W and of the output; none twice in one of them.
        inputs: the activation.
        index: coordinates in theta of the entries of W.
        shape: the output's, one size a letter.

    Returns:
        the contraction, or None if it has another form.
    """
    a, w, out = letters
    if any(len(set(part)) != len(part) for part in letters):
        return None
    size = dict(zip(out, shape, strict=True))
    for letter in a:  # an activation that broadcasts against W
        if letter in out and inputs.shape[a.index(letter)] != size[letter]:
            inputs, a = inputs.select(a.index(letter), 0), a.replace(letter, "")
    for letter in w:
        axis = w.index(letter)
        repeated = index.shape[axis] == 1 or index.stride(axis) == 0
        if repeated and letter in a and (letter in out or index.shape[axis] > 1):
            index, w = index.select(axis, 0), w.replace(letter, "")
        elif letter not in a and (letter not in out or index.shape[axis] != size[letter]):
            return None
    for letter in w:
        if letter in a and inputs.shape[a.index(letter)] != index.shape[w.index(letter)]:
            return None
    if any(letter not in a and letter not in w for letter in out):
        return None
    return Contraction((a, w, out), inputs.detach(), index, tuple(shape))
