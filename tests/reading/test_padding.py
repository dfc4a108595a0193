"""Which positions of data are padding, and words whose row torch's own layers give no derivative."""

import pytest
import torch
from nn.test_signatures import AS_GIVEN, point_of
from programs.zoo import generator
from torch import nn

import pyro_laplace as pl
from pyro_laplace.data import Batch
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.reading.padding import marks_of, padding

pytestmark = pytest.mark.usefixtures("float64")

KEPT = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
MARKS = {"kept": KEPT, "kept, bool": KEPT.bool(), "padded, bool": KEPT == 0, "padded": (KEPT == 0).to(torch.uint8)}
REACHED = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]).bool()  # a unit of the first datum's third is off


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
def test_what_a_mask_marks_is_padding_whichever_way_it_marks(mark):
    marks = marks_of(Chunk(Batch((torch.randn(3, 4), mark), {})))
    assert len(marks) == 1
    assert torch.equal(padding(marks, REACHED), KEPT == 0)


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1], [1, 2]], ids=str)
def test_padding_is_told_of_each_datum_by_itself(rows):
    words = torch.where(KEPT == 1, torch.tensor([5, 1, 0, 3]), 0)
    for mark in (KEPT, words):
        whole = padding(marks_of(Chunk(Batch((), {"mark": mark}))), REACHED)
        part = padding(marks_of(Chunk(Batch((), {"mark": mark[rows]}))), REACHED[rows])
        assert torch.equal(part, whole[rows])


def test_what_reaches_something_is_no_padding():
    assert not padding([KEPT], torch.ones_like(REACHED)).any()
    assert not padding([KEPT[:, :3]], REACHED).any()
    assert not marks_of(Chunk(Batch((torch.ones(3, 4).long(), KEPT.double(), KEPT[0]), {})))


class Pooled(nn.Module):
    """A classifier of whole sequences, by attention that does not see padding."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x, pad):
        h = torch.relu(self.first(x))
        return self.out(self.attention(h[:, :1], h, h, key_padding_mask=pad, need_weights=False)[0][:, 0])


@pytest.mark.parametrize("structure", ["kron", pl.Kron("reduce")], ids=str)
def test_sequences_that_are_padded_further_have_the_same_factors(structure):
    g = generator()
    x, y = torch.randn(6, 4, 3, generator=g), torch.arange(6) % 2
    pad = torch.zeros(6, 4, dtype=torch.bool)
    pad[:3, 2:] = True
    longer = torch.cat([x, torch.full((6, 3, 3), 9.0)], 1), nn.functional.pad(pad, (0, 3), value=True)
    net = Pooled()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    fits = [
        pl.fit_laplace(model, (*inputs, y), point_of(net, model), structure=structure, **AS_GIVEN)
        for inputs in ((x, pad), longer)
    ]
    precisions = [fit.precision.to_dense() for fit in fits]
    torch.testing.assert_close(*precisions, rtol=1e-9, atol=1e-10)


class Words(nn.Module):
    """Means of words, as a layer has them whose derivative torch changes for the training's sake."""

    def __init__(self, **options):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 2, **options), nn.Linear(2, 3)

    def forward(self, words):
        return self.out(torch.tanh(self.table(words)).mean(1))


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_rows_of_a_table_have_the_derivative_that_the_output_has(options):
    g = generator()
    words, y = torch.randint(0, 5, (9, 3), generator=g), torch.randint(0, 3, (9,), generator=g)
    plain, other = Words(), Words(**options)
    other.load_state_dict(plain.state_dict())
    for structure, curvature in (("full", "ggn"), ("diag", "ggn"), ("kron", "ggn"), ("full", "hessian")):
        found = []
        for net in (plain, other):
            model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
            given = AS_GIVEN | {"structure": structure, "curvature": curvature}
            found.append(pl.fit_laplace(model, (words, y), point_of(net, model), **given))
        torch.testing.assert_close(found[1].precision.to_dense(), found[0].precision.to_dense(), rtol=1e-12, atol=1e-12)
        assert found[1].mode.decrement == pytest.approx(found[0].mode.decrement)
