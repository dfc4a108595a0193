"""What is private to torch, or what it leaves undocumented; what keeps its compiler away is in `compiler.py`."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cuda as attention
from torch.backends import mha, mkldnn
from torch.distributions import Distribution, gamma
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage] (documented as public)


class DispatchMode(TorchDispatchMode):
    """Sees operations below autograd, those of a backward pass too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would load its compiler, to shut it out


class NoNumbers(TorchFunctionMode):
    """Inside, what takes numbers out of tensors unseen by a `DispatchMode` is refused.

    Args:
        refuse: gets the name of what takes them; it may raise.
    """

    def __init__(self, refuse: Callable[[str], None]) -> None:
        super().__init__()
        self.refuse = refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; first, if it is one of these, tell of it."""
        if func in _TAKES_NUMBERS:
            self.refuse(func.__name__)
        return func(*args, **(kwargs or {}))


_TAKES_NUMBERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__repr__, Tensor.__format__}


class ByIdentity(WeakIdKeyDictionary):
    """What is known of tensors that still live, by their identity; it keeps none alive."""


# --- trees and modules ------------------------------------------------------------------------


def leaves_of(tree: Any) -> list[Any]:
    """What lists, tuples and dicts within one another hold, in order; of anything else, itself."""
    return tree_leaves(tree)


def map_tree(fn: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with each of its leaves replaced by `fn` of it."""
    return tree_map(fn, tree)


def flattened(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of a tree, and its form."""
    return tree_flatten(tree)


def unflattened(leaves: list[Any], form: Any) -> Any:
    """The tree of a form with these leaves."""
    return tree_unflatten(leaves, form)


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers of a module, without those of modules inside it; `named_buffers` takes far longer."""
    return module._buffers


def own_children(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules directly inside a module."""
    return module._modules


def is_lazy(tensor: Any) -> bool:
    """Whether a parameter or buffer has no shape yet."""
    return isinstance(tensor, UninitializedBuffer | UninitializedParameter)


def renew_flat_weights(layer: nn.RNNBase) -> None:
    """Have a recurrent layer read the weights it has now, of which it keeps a list that `functional_call` overlooks."""
    layer._flat_weights = [getattr(layer, name, None) for name in layer._flat_weights_names]


_ENTRIES = WeakIdKeyDictionary()


def entries_of(sparse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of a sparse matrix in any layout, which `torch.func` cannot convert: once for each."""
    known = _ENTRIES.get(sparse)
    if known is None or known[0] != sparse._version:
        with torch.no_grad():
            coo = sparse.detach().to_sparse_coo().coalesce()
            rows, columns = coo.indices()
            known = sparse._version, (rows, columns, coo.values())
        _ENTRIES[sparse] = known
    return known[1]


def cast_like(fn: Any, like: Tensor) -> Any:
    """A distribution whose floating-point parameters have the dtype and device of a tensor; the one given stays."""
    found = copy.copy(fn)
    for name, value in vars(fn).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            vars(found)[name] = value.to(like)
        elif isinstance(value, Distribution):
            vars(found)[name] = cast_like(value, like)
    return found


@dataclass(frozen=True)
class Wrapper:
    """What a module was wrapped in, by its users' name for it, and how to get at the module itself."""

    name: str
    remedy: str


def wrapper_of(module: nn.Module) -> Wrapper | None:
    """What a module is wrapped in that torch's function transforms and modes do not go through; None if in nothing."""
    if hasattr(module, "_orig_mod"):
        return Wrapper("torch.compile", "give the module that was compiled, net._orig_mod")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return Wrapper(type(module).__name__, "give the module inside, net.module")
    if isinstance(module, torch.jit.ScriptModule):
        return Wrapper("torch.jit (script or trace)", "give the Python module that it was made of")
    return None


# --- calls and graphs -------------------------------------------------------------------------


def without_torch_function() -> AbstractContextManager[Any]:
    """Inside, no mode and no subclass of tensor sees what torch computes."""
    return torch._C.DisableTorchFunction()


def without_override(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `torch.nn.functional` that goes into its body, whose operations a mode then sees."""
    if not isinstance(func, FunctionType):
        return func
    plain = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *args: False
    )
    body = FunctionType(func.__code__, func.__globals__ | plain, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def saved(node: Any, name: str) -> Any:
    """What a node of an autograd graph saved for its backward pass.

    Args:
        node: a tensor's `grad_fn`.
        name: of the operation's argument or result, as torch's derivatives.yaml has it: "self", "alpha", "result".

    Returns:
        the tensor or number.
    """
    return getattr(node, f"_saved_{name}")


# --- kernels that can be differentiated -------------------------------------------------------


@cache
def load_forward_mode() -> None:
    """Torch's first forward-mode pass of a process scripts its decompositions, and warns of its own deprecated call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.jit")
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


@contextmanager
def plain_recurrence() -> Iterator[None]:
    """Compute a float32 LSTM on the CPU by the kernel that `torch.func` can differentiate.

    mkldnn's, which torch prefers, has no forward mode, and under `torch.no_grad` no reverse mode by `torch.func`.
    Convolutions go without mkldnn as well, up to 1.8 times slower.
    """
    enabled = mkldnn.enabled
    try:
        mkldnn.enabled = False  # `mkldnn.flags` would set precisions too
        yield
    finally:
        mkldnn.enabled = enabled


_KERNELS = (
    (attention.flash_sdp_enabled, attention.enable_flash_sdp),
    (attention.mem_efficient_sdp_enabled, attention.enable_mem_efficient_sdp),
    (attention.cudnn_sdp_enabled, attention.enable_cudnn_sdp),
)
"""Attention by fused kernels, on any device: whether it is enabled, and what enables it."""


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by the one kernel that can be differentiated forwards and twice (as `sdpa_kernel` does)."""
    enabled = [is_enabled() for is_enabled, _ in _KERNELS]
    math = attention.math_sdp_enabled()
    try:
        attention.enable_math_sdp(True)
        for _, enable in _KERNELS:
            enable(False)
        yield
    finally:
        attention.enable_math_sdp(math)
        for (_, enable), before in zip(_KERNELS, enabled, strict=True):
            enable(before)


@contextmanager
def plain_tables() -> Iterator[None]:
    """Look words up with the derivative that the result has.

    Torch's reverse mode leaves out the row of a `padding_idx` and its forward mode does not, weights rows by how often
    they are chosen, or makes sparse gradients, as layers ask for.
    """
    own = torch.embedding
    try:
        torch.embedding = lambda weight, words, *_, **__: own(weight, words)
        yield
    finally:
        torch.embedding = own


@contextmanager
def plain_bags() -> Iterator[None]:
    """Compute `embedding_bag`, whose derivative has none of its own, by operations that have all of theirs."""
    own = torch.embedding_bag
    try:
        torch.embedding_bag = _bags
        yield
    finally:
        torch.embedding_bag = own


def _bags(
    weight: Tensor,
    words: Tensor,
    offsets: Tensor,
    by_frequency: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    last_offset: bool = False,
    padding: int | None = None,
) -> tuple[Tensor, None, None, None]:
    """Rows of a table, summed (0), averaged (1) or maximised (2) over bags that begin at the offsets."""
    count = len(offsets) - last_offset
    bag = (
        torch.searchsorted(offsets[:count].contiguous(), torch.arange(len(words), device=words.device), right=True) - 1
    )
    if padding is not None:
        kept = words != padding
        words, bag = words[kept], bag[kept]
        weights = None if weights is None else weights[kept]
    rows = weight[words] if weights is None else weight[words] * weights.unsqueeze(-1)
    total = rows.new_zeros(count, rows.shape[1])
    if mode == 2:
        return (
            total.scatter_reduce(0, bag.unsqueeze(-1).expand_as(rows), rows, "amax", include_self=False),
            None,
            None,
            None,
        )
    total = total.index_add(0, bag, rows)
    if mode == 1:
        total = total / torch.bincount(bag, minlength=count).clamp(min=1).unsqueeze(-1)
    return total, None, None, None


@contextmanager
def plain_layers() -> Iterator[None]:
    """Attention layers without their fused inference path, which has no derivative and cannot be batched over draws."""
    enabled = mha.get_fastpath_enabled()
    try:
        mha.set_fastpath_enabled(False)
        yield
    finally:
        mha.set_fastpath_enabled(enabled)


@contextmanager
def gamma_drawn_by(draw: Callable[..., Tensor]) -> Iterator[None]:
    """Have standard Gamma variates, which torch draws by a function that no mode sees, drawn by another.

    Args:
        draw: gets torch's own function, and what it is called with.
    """
    own = gamma._standard_gamma
    try:
        gamma._standard_gamma = lambda concentration, **options: draw(own, concentration, **options)
        yield
    finally:
        gamma._standard_gamma = own
