"""Why a model failed on what it was called with, read off its error: arguments, dtypes, groups, shapes, modules."""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_laplace._compat.torch import leaves_of, wrapper_of
from pyro_laplace._errors import InvalidData, LaplaceError, UnsupportedProgram
from pyro_laplace.data import Batch

_DTYPE = re.compile(r"dtype|scalar type|same type|not implemented for '(Half|BFloat16|Long|Int|Double|Float)'")
_BEYOND = re.compile(r"index (-?\d+ is out of bounds|out of range)|out of bounds|indexSelect")
_SHAPE = re.compile(r"shape|size|dimension|channels|broadcast", re.IGNORECASE)
_FOREIGN_CODE = tuple(
    str(Path(path).parent) for path in (torch.__file__, pyro.__file__, Path(__file__).parent, inspect.__file__)
)


@dataclass(frozen=True)
class Failed:
    """A call of a model that raised.

    Attributes:
        model: the program.
        batch: what it was called with.
        values: of the latent sites that it had on this call, or is to have.
        sites: how many sites there had been.
        error: what it raised.
    """

    model: Callable[..., Any]
    batch: Batch
    values: Mapping[str, Tensor]
    sites: int
    error: Exception

    def explained(self) -> LaplaceError | None:
        """The error that says why, where that can be told; torch's own text is part of it."""
        for explain, kind in (
            (self._plain_module, UnsupportedProgram),
            (self._wrapped_module, UnsupportedProgram),
            (self._arguments, InvalidData),
            (self._dtype, InvalidData),
            (self._group, InvalidData),
            (self._shapes, InvalidData),
        ):
            said = explain()
            if said is not None:
                return kind(f"{said} (the model raised {type(self.error).__name__}: {self.error})")
        return None

    @property
    def _module(self) -> nn.Module | None:
        """The model where it is a module, handlers around it or not."""
        model = getattr(self.model, "__wrapped__", self.model)
        return model if isinstance(model, nn.Module) else None

    def _plain_module(self) -> str | None:
        module = self._module
        if module is None or self.sites or any(isinstance(each, PyroModule) for each in module.modules()):
            return None
        return (
            f"the model is a {type(module).__name__}, a torch module without Pyro statements, and no program: "
            "pl.bayesianize(module, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification()), or "
            "likelihood=pl.nn.Regression(noise), makes a program of it"
        )

    def _wrapped_module(self) -> str | None:
        module = self._module
        for each in () if module is None or self._is_users_raise else module.modules():
            wrapper = wrapper_of(each)
            if wrapper is not None:
                return f"the model holds a module from {wrapper.name}, which no derivative goes through here: " + (
                    wrapper.remedy
                )
        return None

    def _arguments(self) -> str | None:
        signature = signature_of(self.model)
        if not isinstance(self.error, TypeError) or signature is None:
            return None
        try:
            signature.bind(*self.batch.args, **self.batch.kwargs)
        except TypeError as reason:
            names = ", ".join([*(["..."] * len(self.batch.args)), *(f"{name}=..." for name in self.batch.kwargs)])
            return (
                f"the model takes {signature}, and the data call it as model({names}): {reason}. A tuple is one batch "
                "for model(*batch), a dict one for model(**batch), a list or DataLoader a sequence of batches"
            )
        return None

    def _dtype(self) -> str | None:
        if not _DTYPE.search(str(self.error)):
            return None
        module = self._module
        parameters = _dtypes([] if module is None else module.parameters())
        sites = _dtypes(self.values.values())
        floating = sorted(tensors_given(self.batch), key=lambda each: not each[1].is_floating_point())
        for what, own in (("parameters", parameters), ("sites", sites or {torch.get_default_dtype()})):
            for name, value in floating if own else ():
                if value.dtype not in own:
                    to, back = (_METHODS.get(dtype, "float") for dtype in (min(own, key=str), value.dtype))
                    return (
                        f"{name} of the data is of {value.dtype}, and the program's {what} are of {_listed(own)}: "
                        f"convert one of them, as x.{to}(), net.{back}() or torch.set_default_dtype do"
                    )
        if len(parameters | sites) > 1:
            return (
                f"the program's parameters are of {_listed(parameters)}, and its sites of {_listed(sites)}: give the "
                "priors tensors of the parameters' dtype, or call torch.set_default_dtype"
            )
        return None

    def _group(self) -> str | None:
        if not isinstance(self.error, IndexError | RuntimeError) or not _BEYOND.search(str(self.error)):
            return None
        sizes = [int(size) for size in re.findall(r"size (\d+)", str(self.error))]
        sites = {name: max(value.shape) for name, value in self.values.items() if value.dim()}
        if sizes:
            sites = {name: size for name, size in sites.items() if size in sizes}
        for name, value in tensors_given(self.batch):
            if value.is_floating_point() or value.dtype is torch.bool or not value.numel():
                continue
            for site, size in sites.items():
                beyond = (value >= size) | (value < -size)
                if bool(beyond.any()):
                    place = beyond.nonzero()[0].tolist()
                    return (
                        f"{name} of the data has the number {int(value[tuple(place)])} at {place}, and the latent site "
                        f"{site!r} has {size} entries, numbered from 0 to {size - 1}. Of a group that was not among "
                        "the data a posterior says nothing: leave it out, or draw it from its prior, as "
                        "with_new_groups of pl.fit_nested_laplace's guide does. Else count the groups anew: "
                        f"{name.split()[0]}.max() + 1"
                    )
        return None

    def _shapes(self) -> str | None:
        theirs = isinstance(self.error, RuntimeError | IndexError | NotImplementedError)
        pyros = isinstance(self.error, ValueError) and not self._is_of_user
        if not (theirs or pyros) or not _SHAPE.search(str(self.error)):
            return None
        shapes = ", ".join(f"{name} of shape {list(value.shape)}" for name, value in tensors_given(self.batch))
        sites = ", ".join(f"{name!r} {list(value.shape)}" for name, value in self.values.items())
        known = f"; its latent sites have the shapes {sites}" if sites else ""
        return f"shapes do not go together{self._where}: the model was called with {shapes or 'no tensor'}{known}"

    @property
    def _is_of_user(self) -> bool:
        """Whether it comes from the user's own code, or from what that calls without another frame."""
        frames = traceback.extract_tb(self.error.__traceback__)
        return bool(frames) and not frames[-1].filename.startswith(_FOREIGN_CODE)

    @property
    def _is_users_raise(self) -> bool:
        (frame,) = traceback.extract_tb(self.error.__traceback__)[-1:] or (None,)
        return self._is_of_user and frame is not None and (frame.line or "").startswith(("raise", "assert"))

    @property
    def _where(self) -> str:
        """The last line of the user's own code on the way to the error."""
        for frame in reversed(traceback.extract_tb(self.error.__traceback__)):
            if not frame.filename.startswith(_FOREIGN_CODE):
                line = f", {frame.line!r}" if frame.line else ""
                return f" in {frame.name} ({Path(frame.filename).name}, line {frame.lineno}{line})"
        return ""


_METHODS = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "half"}


def _dtypes(values: Iterable[Tensor]) -> set[torch.dtype]:
    return {value.dtype for value in values if value.is_floating_point()}


def _listed(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(map(str, dtypes)))


def tensors_given(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a model is called with, and how an error calls them."""
    for name, value in named(batch):
        for leaf in leaves_of(value):
            if isinstance(leaf, Tensor):
                yield name, leaf


def named(batch: Batch) -> list[tuple[str, Any]]:
    """The arguments of a call, and how an error calls them."""
    return [*((f"argument {k}", each) for k, each in enumerate(batch.args)), *batch.kwargs.items()]


def signature_of(model: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a program; of a module, its `forward`'s. None of what has none (some C functions)."""
    try:
        return inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):
        return None
