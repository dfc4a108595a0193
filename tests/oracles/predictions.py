"""What `pl.Predictive` is compared with: Pyro's own, and the modules and parameters as they were before.

`both` and `snapshot` prepare, `assert_alike` and `assert_same` compare.
"""

import pyro
import pyro.infer
import torch
from torch import nn

import pyro_laplace as pl

NUM = 5


def both(*args, **options):
    """Pyro's and ours, with the same arguments."""
    return pyro.infer.Predictive(*args, **options), pl.Predictive(*args, **options)


def assert_alike(theirs: dict, ours: dict) -> None:
    def described(result):
        return {name: (value.shape, value.dtype) for name, value in result.items()}

    assert list(described(theirs).items()) == list(described(ours).items())
    assert all(value.isfinite().all() and not value.requires_grad for value in ours.values())
    assert all(value.is_contiguous() for value in ours.values())


def snapshot(*modules: nn.Module) -> list:
    """Bits of every tensor, every mode, every parameter of the store."""
    state = [(name, value.clone()) for module in modules for name, value in module.state_dict().items()]
    modes = [child.training for module in modules for child in module.modules()]
    store = sorted((name, value.detach().clone()) for name, value in pyro.get_param_store().items())
    return [state, modes, store]


def assert_same(before: list, after: list) -> None:
    for one, other in zip(before[::2], after[::2], strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))
    assert before[1] == after[1]
