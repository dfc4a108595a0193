"""Recorded functions against the functions themselves."""

import gc
import weakref

import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.recording.recorded import Recorded, points_around, recorded_if_same
from pyro_laplace.recording.recorder import NotRecordable, Slot, as_one_operation, take_down
from pyro_laplace.recording.simplified import simplified

pytestmark = pytest.mark.usefixtures("float64")

CONSTANT = torch.tensor([0.3, -1.0, 2.0])
ORDER = torch.tensor([2, 0, 1])


def value_and_gradient(theta):
    leaf = theta.detach().requires_grad_()
    value = (leaf[:3] * CONSTANT).sin().sum() * torch.stack([leaf, leaf**2]).logsumexp(0).sum()
    return value.detach(), torch.autograd.grad(value, leaf)[0], CONSTANT


def third_derivatives(theta):
    def density(x):
        return -((x[:3][ORDER].exp() * CONSTANT).sum() ** 2) / (1 + x.square().sum()) + torch.lgamma(x**2 + 1).sum()

    hessian = torch.func.jacrev(torch.func.grad(density))
    return hessian(theta), torch.func.grad(lambda x: hessian(x).diagonal().square().sum())(theta)


def through_a_factor(theta):
    matrix = torch.eye(4) + theta[:, None] * theta
    root, info = torch.linalg.cholesky_ex(matrix)
    low, high = torch.linalg.eigvalsh(matrix).split(2)
    return (
        torch.cholesky_solve(theta.unsqueeze(-1), root),
        root.clone().tril_(),
        info == 0,
        torch.cat([low, high, theta]),
    )


def by_name(theta):
    return (torch.addcmul(theta, tensor1=theta, tensor2=theta, value=2.0), theta.clamp(min=theta.mean()), theta.sum(0))


@pytest.mark.parametrize("fn", [value_and_gradient, third_derivatives, through_a_factor, by_name])
def test_a_recording_gives_what_the_function_gives_elsewhere(fn):
    recorded = Recorded.of(fn, torch.randn(4))
    for _ in range(3):
        theta = torch.randn(4)
        for one, other in zip(recorded(theta), fn(theta), strict=True):
            assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_a_recording_is_as_good_at_points_where_the_function_is_not_finite():
    recorded = Recorded.of(lambda x: (x.log(), (x * 1.0) ** 1.0, x**0.0), torch.ones(3))
    x = torch.tensor([-1.0, torch.inf, torch.nan])
    assert_close(recorded(x), [x.log(), x, torch.ones(3)], equal_nan=True)


def test_what_is_no_list_of_operations_is_not_recorded():
    kept = torch.zeros(2)

    def writes(theta):
        return (kept.copy_(theta) * 2,)

    def branches(theta):
        return (theta if float(theta.sum()) > 0 else -theta,)

    for fn in (writes, branches):
        with pytest.raises(NotRecordable if fn is writes else (NotRecordable, RuntimeError)):
            Recorded.of(fn, torch.ones(2))
        assert recorded_if_same(fn, points_around(torch.ones(2)), 1e-16) is None


def test_a_function_that_does_something_else_elsewhere_is_not_taken():
    calls = []

    def counts(theta):
        calls.append(theta)
        return (theta * len(calls),)

    assert recorded_if_same(counts, points_around(torch.ones(2)), 1e-16) is None


def test_one_operation_may_look_at_numbers():
    def newton(a):
        x = 1.0
        while abs(x * x - float(a[0])) > 1e-14:
            x = (x + float(a[0]) / x) / 2
        return (a.new_tensor([x]),)

    def fn(theta):
        return (2 * as_one_operation(newton, theta.square())[0],)

    with pytest.raises(NotRecordable):
        Recorded.of(lambda theta: newton(theta.square()), torch.tensor([3.0]))
    recorded = Recorded.of(fn, torch.tensor([3.0]))
    assert_close(recorded(torch.tensor([5.0]))[0], torch.tensor([10.0]))


# --- simplification -----------------------------------------------------------------------------------


def test_what_is_done_twice_or_changes_nothing_is_left_out():
    def fn(x):
        twice = x.exp() * x.exp()
        nothing = (twice * torch.ones(3)).expand(3).view(3) / 1.0
        return (nothing + torch.ones_like(x).neg().exp() * x**1.0,)

    plain = take_down(fn, torch.zeros(3))
    names = [step.operation.__name__ for step in simplified(plain).steps]
    assert sorted(names) == ["add.Tensor", "exp.default", "mul.Tensor", "mul.Tensor"]
    assert len(plain.steps) > len(names)


def test_layouts_and_dtypes_are_kept():
    """A product by one may widen, broadcast or copy; and of two equal numbers one may be whole."""
    wide = torch.ones(2, 3)
    for fn in (
        lambda x: (x * wide, (x * wide).view(6)),
        lambda x: (x.float().double(), x.long() / 1, x * torch.ones(3, dtype=torch.float64)),
        lambda x: (x.long() * 2, x.long() * 2.0),
        lambda x: (x.expand(2, 3).contiguous().view(6), x.expand(2, 3) * 1.0),
    ):
        recorded, x = Recorded.of(fn, torch.zeros(3)), torch.tensor([0.25, 1.5, -2.75])
        for one, other in zip(recorded(x), fn(x), strict=True):
            assert_close(one, other, rtol=0, atol=0)


def test_operations_that_write_stay_as_they_are():
    def fn(x):
        made = x * 1.0
        made.add_(1.0)
        return (made, x * 1.0)

    plain = take_down(fn, torch.zeros(2))
    assert simplified(plain) is plain
    assert_close(Recorded.of(fn, torch.zeros(2))(torch.ones(2)), [torch.full((2,), 2.0), torch.ones(2)])


def test_large_constants_are_not_kept():
    def fn(x):
        return (x * torch.ones_like(x),)

    with pl.settings.using(record_constant=2):
        assert len(simplified(take_down(fn, torch.zeros(3))).steps) == 2
    (output,) = simplified(take_down(fn, torch.zeros(3))).outputs
    assert output == Slot(0)


# --- what hides from a recording ------------------------------------------------------------------------


def counted(t):
    return (t * (t > 0.5).nonzero().shape[0],)


def masked(t):
    return (t[t > 0.0].square().mean(),)


def listed(t):
    return (t if t.tolist()[0] > 3 else -t,)


def as_array(t):
    return (t if t.numpy()[0] > 3 else -t,)


def drawn(t):
    return (t + torch.rand_like(t),)


def in_words(t):
    return (t if f"{t[0]:.0f}" == "3" else -t,)


@pytest.mark.parametrize("fn", [counted, masked, listed, as_array, drawn, in_words])
def test_values_that_decide_on_shapes_or_go_into_python_are_refused(fn):
    with pytest.raises(NotRecordable):
        Recorded.of(fn, torch.ones(3))


def test_an_index_of_whole_numbers_and_what_looks_at_dtypes_are_recorded():
    def fn(t):
        return t[ORDER], t.to(torch.result_type(t, CONSTANT)), torch.binary_cross_entropy_with_logits(t, t.sigmoid())

    recorded, theta = Recorded.of(fn, torch.zeros(3)), torch.randn(3)
    for one, other in zip(recorded(theta), fn(theta), strict=True):
        assert_close(one, other)


def test_the_sign_of_zero_is_a_value():
    def fn(t):
        zero = torch.zeros_like(t)
        return torch.atan2(zero, t), torch.atan2(-zero, t), (t * 0.0).signbit(), (t * -0.0).signbit()

    recorded, theta = Recorded.of(fn, torch.ones(2)), -torch.ones(2)
    for one, other in zip(recorded(theta), fn(theta), strict=True):
        assert_close(one, other)


def test_results_may_be_written_into():
    argument, constant = torch.ones(2), torch.arange(2.0)
    recorded = Recorded.of(lambda t: (t * 1.0, t + 1, constant, torch.ones_like(t)), argument)
    for each in recorded(argument):
        each.add_(5.0)
    assert_close(argument, torch.ones(2))
    assert_close(recorded(argument), [torch.ones(2), torch.full((2,), 2.0), torch.arange(2.0), torch.ones(2)])


def test_nothing_that_was_called_is_kept():
    class Adds:
        def __call__(self, t):
            return (t + 1,)

    adds = Adds()
    seen = weakref.ref(adds)
    recorded = Recorded.of(lambda t: (as_one_operation(adds, t)[0],), torch.ones(1))
    recorded(torch.ones(1))
    del adds, recorded
    gc.collect()
    assert seen() is None
