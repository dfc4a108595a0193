"""Networks with any signature: who is given which argument of a call, and what of the output is predicted."""

import re
import warnings
from collections import UserDict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyro
import pytest
import torch
from programs.zoo import generator
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

AS_GIVEN = {"polish": False, "on_not_a_mode": "ignore", "progress": False, "curvature": "ggn"}


class Encoding(UserDict):
    """A mapping that is no dict, as tokenizers' collators make it."""


@dataclass
class Output:
    """What a Hugging Face style model returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Classifier(nn.Module):
    """Takes what a Hugging Face style classifier takes, and would compute a loss if it were given labels."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(11, 4)
        self.positions = nn.Embedding(8, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.classifier = nn.Linear(4, 3)

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        assert labels is None
        assert not kwargs
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        h = self.embeddings(input_ids) + self.positions(torch.arange(input_ids.shape[1]))[None]
        h = h + self.attention(h, h, h, key_padding_mask=mask == 0, need_weights=False)[0]
        return Output(logits=self.classifier(torch.tanh(h[:, 0])))


def tokens(num_obs=10, length=6):
    g = generator()
    ids = torch.randint(1, 11, (num_obs, length), generator=g)
    mask = torch.ones_like(ids)
    mask[: num_obs // 2, length - 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (num_obs,), generator=g)}


class Two(nn.Module):
    """Two inputs by position."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, left, right):
        return self.a(left) + self.b(torch.tanh(right))


class Named(Two):
    """The same by name alone."""

    def forward(self, *, left, right):
        return super().forward(left, right)


class OfMapping(Two):
    """The same as one mapping."""

    def forward(self, batch: Mapping[str, Tensor]):
        return super().forward(batch["left"], batch["right"])


class OfAny(Two):
    """The same through a wrapper that passes on whatever it is given."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def two():
    g = generator()
    left, right = torch.randn(9, 2, generator=g), torch.randn(9, 3, generator=g)
    return left, right, torch.randint(0, 3, (9,), generator=g)


def point_of(net, model):
    return {name: each.detach().clone() for name, each in net.named_parameters() if name in model.priors}


def log_joint(model, point, *args, **kwargs):
    return poutine.trace(poutine.condition(model, data=point)).get_trace(*args, **kwargs).log_prob_sum()


def ggn(call, net, names, y):
    """``sum J' (diag p - p p') J`` over the counted entries of y, by `torch.func`."""
    fixed = {name: each.detach() for name, each in net.named_parameters()}
    free = {name: fixed[name] for name in names}
    output = lambda values: call(lambda *a, **k: torch.func.functional_call(net, {**fixed, **values}, a, k))  # noqa: E731
    logits, kept = output(free), y != -100
    with warnings.catch_warnings():  # torch speaks of how fast its own reference is
        warnings.filterwarnings("ignore", "There is a performance drop")
        jacobian = torch.func.jacrev(output)(free)
    rows = torch.cat([jacobian[name].flatten(logits.dim()) for name in names], -1)[kept]
    p = logits[kept].softmax(-1)
    return torch.einsum("rcp,rcd,rdq->pq", rows, p.diag_embed() - p.unsqueeze(-1) * p.unsqueeze(-2), rows)


@pytest.mark.parametrize("form", ["positional", "keyword-only", "mapping", "any"])
def test_all_ways_of_giving_two_inputs_are_one_program(form):
    left, right, y = two()
    net = Two()
    made = {"positional": Two, "keyword-only": Named, "mapping": OfMapping, "any": OfAny}[form]()
    made.load_state_dict(net.state_dict())
    model = pl.bayesianize(made, pl.nn.Isotropic(1.0), pl.nn.Classification())
    values = {name: torch.randn(each.shape) for name, each in net.named_parameters()}
    expected = torch.distributions.Categorical(logits=torch.func.functional_call(net, values, (left, right))).log_prob(
        y
    ).sum() + sum(torch.distributions.Normal(0.0, 1.0).log_prob(each).sum() for each in values.values())

    batch = {"left": left, "right": right, "y": y}
    calls = [((), batch), ((batch,), {}), ((Encoding(batch),), {}), ((), Encoding(batch))]
    calls += [(({"left": left, "right": right}, y), {})]
    if form in ("positional", "keyword-only"):
        calls += [((left, right, y), {}), ((left, right), {"y": y}), ((left,), {"right": right, "y": y})]
    for args, kwargs in calls:
        torch.testing.assert_close(log_joint(model, values, *args, **kwargs), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("structure", ["full", "diag", "kron"])
def test_a_classifier_in_a_loader_of_mappings_has_the_curvature_of_a_dense_reference(structure):
    batch, net = tokens(), Classifier()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(), output="logits", target="labels")
    point = point_of(net, model)
    rows = [{name: each[i] for name, each in batch.items()} for i in range(10)]
    collate = lambda rows: Encoding({name: torch.stack([row[name] for row in rows]) for name in rows[0]})  # noqa: E731
    loader = DataLoader(rows, batch_size=3, collate_fn=collate)
    guide = pl.fit_laplace(model, loader, point, structure=structure, **AS_GIVEN)
    whole = pl.fit_laplace(model, batch, point, structure=structure, **AS_GIVEN)
    precision = guide.precision.to_dense()
    torch.testing.assert_close(precision, whole.precision.to_dense(), rtol=1e-10, atol=1e-10)
    assert guide.log_evidence == pytest.approx(whole.log_evidence, abs=1e-9)

    inputs = {name: each for name, each in batch.items() if name != "labels"}
    expected = ggn(lambda net: net(**inputs).logits, net, list(point), batch["labels"]) + torch.eye(len(precision))
    if structure == "full":
        torch.testing.assert_close(precision, expected, rtol=1e-8, atol=1e-10)
    elif structure == "diag":
        torch.testing.assert_close(precision.diagonal(), expected.diagonal(), rtol=1e-8, atol=1e-10)
    else:  # no datum is at the last two positions: what is said of them is the prior
        unseen = guide.layout["positions.weight"].start + 4 * 6
        torch.testing.assert_close(precision[unseen : unseen + 8, unseen : unseen + 8], torch.eye(8))
    predicted = pl.LinearizedPredictive(model, guide)(**inputs)["y"]
    assert predicted.probs.shape == (10, 3)


def test_batches_of_several_lengths_are_one_posterior():
    """A collator pads to the longest of its own batch."""
    batch, net = tokens(), Classifier()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(), output="logits", target="labels")
    point = point_of(net, model)
    short = {name: each[:5, :4] if each.dim() > 1 else each[:5] for name, each in batch.items()}
    long = {name: each[5:] for name, each in batch.items()}
    for structure in ("full", "diag"):
        apart = pl.fit_laplace(model, [short, long], point, structure=structure, **AS_GIVEN)
        padded = pl.fit_laplace(model, batch, point, structure=structure, **AS_GIVEN)
        torch.testing.assert_close(apart.precision.to_dense(), padded.precision.to_dense(), rtol=1e-10, atol=1e-10)
        assert apart.log_evidence == pytest.approx(padded.log_evidence, abs=1e-9)


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("made", "output"),
    [
        (lambda f: {"scores": f, "other": 0}, "scores"),
        (lambda f: Output(logits=f), "logits"),
        (lambda f: (0, f), 1),
        (lambda f: [f, 0], -2),
        (lambda f: Pair(0, f), "second"),
        (lambda f: Encoding(scores=f), "scores"),
        (lambda f: f.movedim(-1, 0), lambda f: f.movedim(0, -1)),
    ],
)
def test_output_picks_what_is_predicted(made, output):
    class Structured(Two):
        def forward(self, left, right):
            return made(super().forward(left, right))

    left, right, y = two()
    net = Structured()
    plain = Two()
    plain.load_state_dict(net.state_dict())
    values = {name: torch.randn(each.shape) for name, each in net.named_parameters()}
    picked = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(), output=output)
    expected = pl.bayesianize(plain, pl.nn.Isotropic(1.0), pl.nn.Classification())
    assert torch.equal(log_joint(picked, values, left, right, y), log_joint(expected, values, left, right, y))
    program = pl.bayesianize(net, pl.nn.Isotropic(1.0), output=output)
    with torch.no_grad():
        found = poutine.condition(program, data=values)(left, right)
        assert torch.equal(found, torch.func.functional_call(plain, values, (left, right)))


def test_what_a_likelihood_takes_besides_comes_by_position_and_by_name():
    x, y, exposure = torch.randn(6, 2), torch.randint(0, 4, (6,)), torch.rand(6) + 1
    net = nn.Linear(2, 1)
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Counts())
    point = point_of(net, model)
    first = log_joint(model, point, x, y, exposure)
    for kwargs in ({"x": x}, {"input": x}):
        assert torch.equal(log_joint(model, point, y=y, exposure=exposure, **kwargs), first)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {"left": 0, "rihgt": 1, "y": 2}, ["takes 'left', 'right'", "is given 'left', 'rihgt', 'y'", "no 'rihgt'"]),
        ((), {"left": 0, "y": 2}, ["takes 'left', 'right'", "is given 'left', 'y'", "needs 'right'"]),
        ((0, 1, 2, 3), {}, ["2 arguments by position after the inputs", "nothing else"]),
        ((0, 1, 2), {"y": 2}, ["'y', the data, is there by position too"]),
    ],
)
def test_arguments_that_are_nobodys_are_refused_by_name(args, kwargs, words):
    model = pl.bayesianize(Two(), pl.nn.Isotropic(1.0), pl.nn.Classification())
    with pytest.raises(pl.LaplaceError) as error:
        model(*args, **kwargs)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, ["Classification", "Output of 'loss', 'logits'", "output='logits'"]),
        ("scores", ["output='scores'", "'loss', 'logits'"]),
        (3, ["output=3", "'loss', 'logits'"]),
    ],
)
def test_an_output_that_is_not_there_is_refused_with_those_that_are(output, words):
    batch = tokens()
    model = pl.bayesianize(Classifier(), pl.nn.Isotropic(1.0), pl.nn.Classification(), output=output, target="labels")
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(model, batch, progress=False)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "options",
    [
        {"output": True}, {"output": ""}, {"output": Output}, {"target": ""}, {"mask": ""},
        {"mask": "y"}, {"likelihood": None, "target": "labels"}, {"likelihood": None, "mask": "m"},
    ],
)  # fmt: skip
def test_options_are_checked_when_they_are_given(options):
    with pytest.raises(pl.LaplaceError):
        pl.bayesianize(Two(), pl.nn.Isotropic(1.0), **{"likelihood": pl.nn.Classification(), **options})


@pytest.mark.parametrize("options", [{"axis": 0}, {"axis": True}, {"ignore_index": False}])
def test_the_options_of_classification_are_checked(options):
    with pytest.raises(pl.LaplaceError, match="Classification"):
        pl.nn.Classification(**options)


def test_the_ways_a_network_is_drawn_do_not_depend_on_how_it_is_called():
    """By name, and without y: the program draws it."""
    batch = tokens()
    model = pl.bayesianize(Classifier(), pl.nn.Isotropic(1.0), pl.nn.Classification(), output="logits", target="labels")
    inputs = {name: each for name, each in batch.items() if name != "labels"}
    pyro.set_rng_seed(0)
    by_name = model(**inputs)
    pyro.set_rng_seed(0)
    assert torch.equal(model(inputs), by_name)
    assert by_name.shape == (10,)


# --- the page ---------------------------------------------------------------------------------------


def test_the_ten_lines_of_the_page_run(tmp_path, monkeypatch):
    """From a trained classifier in a loader of dicts to tuned, saved, loaded probabilities; and of pixels."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "nn.md").read_text()
    section = page[page.index("## What a network takes and gives") : page.index("### Hugging Face")]
    lines, pixels = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) <= 10
    batch, net = tokens(60), Classifier()
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    inputs = {name: each for name, each in batch.items() if name != "labels"}
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(**inputs).logits, batch["labels"]).backward()
        optimiser.step()
    rows = [{name: each[i] for name, each in batch.items()} for i in range(60)]
    names = {"pl": pl, "net": net.eval(), **inputs}
    names |= {"train": DataLoader(rows[:40], batch_size=20), "valid": DataLoader(rows[40:], batch_size=20)}
    exec(compile(lines, "docs/nn.md", "exec"), names)
    assert (tmp_path / "classifier.laplace").exists()
    assert "std" in names["guide"].hyperparameters
    torch.testing.assert_close(names["probs"].sum(-1), torch.ones(60))
    plain = net(**inputs).logits.softmax(-1).detach()
    assert bool((names["probs"].max(-1).values <= plain.max(-1).values + 1e-6).all())  # averaging takes confidence

    segmenter = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 1))
    point = {name: weight.detach() for name, weight in segmenter.named_parameters()}
    names = {"pl": pl, "net": segmenter, "point": point, "images": torch.randn(5, 2, 4, 4)}
    exec(compile(pixels, "docs/nn.md", "exec"), names | {"masks": torch.randint(0, 4, (5, 4, 4))})


@pytest.mark.parametrize("wrap", [torch.jit.script, nn.DataParallel], ids=["script", "DataParallel"])
def test_a_wrapped_network_is_refused_with_what_to_give_instead(wrap):
    with pytest.raises(pl.LaplaceError, match="give the"):
        pl.bayesianize(wrap(nn.Linear(2, 3)), pl.nn.Isotropic(1.0), pl.nn.Classification())
