"""Networks with outputs at many positions: tokens and pixels, of which some are masked."""

import warnings

import pytest
import torch
from nn.test_signatures import AS_GIVEN, ggn, log_joint, point_of
from programs.zoo import generator
from torch import nn

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


class Tagger(nn.Module):
    """Classes at each position, of these alone."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)))


class Attention(Tagger):
    """The same of a sequence, with torch's own attention."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, x, mask):
        h = self.first(x)
        return self.out(h + self.attention(h, h, h, key_padding_mask=mask == 0, need_weights=False)[0])


class Scaled(Tagger):
    """Attention written by hand, by position and name, which returns a dict."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 3)

    def forward(self, x, *, mask):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None] != 0)
        return {"scores": self.out(h.transpose(1, 2).flatten(2))}


class Recurrent(nn.Module):
    """An LSTM, of packed sequences if their lengths are given."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x, lengths=None):
        if lengths is None:
            return self.out(self.lstm(x)[0])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        return self.out(h)


class Language(nn.Module):
    """A table of words that is also the last layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, words):
        return self.out(torch.tanh(self.embed(words)))


def sequences(num_obs=8, length=6):
    g = generator()
    x, y = torch.randn(num_obs, length, 4, generator=g), torch.randint(0, 3, (num_obs, length), generator=g)
    mask = torch.ones_like(y)
    mask[: num_obs // 2, length - 2 :] = 0
    mask[0, 2:] = 0
    return x, y, mask


def alone(x, y, mask):
    """Each datum without what is masked, a batch of its own."""
    return [(x[i : i + 1, kept], y[i : i + 1, kept]) for i, kept in enumerate(mask.bool())]


MODELS = {
    "tagger": (Tagger, None, lambda net, x, mask: net(x)),
    "attention": (Attention, None, lambda net, x, mask: net(x, mask)),
    "scaled": (Scaled, "scores", lambda net, x, mask: net(x, mask=mask)["scores"]),
    "lstm": (Recurrent, None, lambda net, x, mask: net(x)),
    "packed": (Recurrent, None, lambda net, x, mask: net(x)),
}


@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("kind", MODELS)
def test_curvature_is_that_of_a_dense_reference_and_of_any_batches(kind, subset):
    make, output, call = MODELS[kind]
    x, y, mask = sequences()
    labels = torch.where(mask.bool(), y, -100)
    net = make()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(), output=output)
    point = point_of(net, model)
    batch = {"x": x, "y": labels}
    if kind in ("attention", "scaled"):
        batch["mask"] = mask
    if kind == "packed":
        batch["lengths"] = mask.sum(1)
    halves = [{name: each[part] for name, each in batch.items()} for part in (slice(0, 3), slice(3, 8))]
    for structure in ("full", "diag"):
        guide = pl.fit_laplace(model, batch, point, subset=subset, structure=structure, **AS_GIVEN)
        other = pl.fit_laplace(model, halves, point, subset=subset, structure=structure, **AS_GIVEN)
        precision = guide.precision.to_dense()
        torch.testing.assert_close(precision, other.precision.to_dense(), rtol=1e-10, atol=1e-10)
        names = [name for name in point if name in guide.layout]
        expected = ggn(lambda net: call(net, x, mask), net, names, labels) + torch.eye(len(precision))
        if structure == "diag":
            precision, expected = precision.diagonal(), expected.diagonal()
        torch.testing.assert_close(precision, expected, rtol=1e-8, atol=1e-10)
    kron = [
        pl.fit_laplace(model, each, point, subset=subset, structure="kron", **AS_GIVEN).precision.to_dense()
        for each in (batch, halves)
    ]
    torch.testing.assert_close(*kron, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_a_table_that_is_also_the_last_layer_has_the_curvature_of_a_dense_reference(structure):
    net = Language()
    words = torch.randint(0, 7, (6, 4), generator=generator())
    labels = words.roll(-1, 1).index_fill(1, torch.tensor([3]), -100)
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    point = point_of(net, model)
    guide = pl.fit_laplace(model, (words, labels), point, structure=structure, **AS_GIVEN)
    precision = guide.precision.to_dense()

    def call(net):
        return net(words)

    expected = ggn(call, net, list(point), labels) + torch.eye(len(precision))
    if structure == "diag":
        precision, expected = precision.diagonal(), expected.diagonal()
    torch.testing.assert_close(precision, expected, rtol=1e-8, atol=1e-10)
    with pytest.raises(pl.LaplaceError, match=r"'embed.weight'\] share a part of a weight"):
        pl.fit_laplace(model, (words, labels), point, structure="kron", **AS_GIVEN)


def test_scores_count_the_positions_that_count():
    x, y, mask = sequences()
    net = Tagger()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    labels = torch.where(mask == 1, y, -100)
    guide = pl.fit_laplace(model, (x, labels), point_of(net, model), subset="last_layer", **AS_GIVEN)
    predict = pl.LinearizedPredictive(model, guide)
    found = pl.scores(predict, (x, labels))
    probs = predict(x)["y"].base_dist.probs
    kept = mask == 1
    assert found["accuracy"] == pytest.approx(float((probs.argmax(-1) == y)[kept].double().mean()))


STRUCTURES = ["full", "diag", "kron", pl.Kron("reduce")]


@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("by", ["label", "mask", "both"])
def test_masked_positions_are_as_if_they_were_not_there(by, subset):
    x, y, mask = sequences()
    net = Tagger()
    model = pl.bayesianize(
        net, pl.nn.Isotropic(1.0), pl.nn.Classification(), mask=None if by == "label" else "attention_mask"
    )
    plain = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    point = point_of(net, model)
    batch = {
        "x": torch.where(mask.bool().unsqueeze(-1), x, 7.0),
        "y": y if by == "mask" else torch.where(mask == 1, y, -100),
    }
    if by != "label":
        batch["attention_mask"] = mask
    for structure in STRUCTURES:
        padded = pl.fit_laplace(model, batch, point, subset=subset, structure=structure, **AS_GIVEN)
        ragged = pl.fit_laplace(plain, alone(x, y, mask), point, subset=subset, structure=structure, **AS_GIVEN)
        torch.testing.assert_close(padded.precision.to_dense(), ragged.precision.to_dense(), rtol=1e-10, atol=1e-10)
        assert padded.log_evidence == pytest.approx(ragged.log_evidence, abs=1e-9)
        assert padded.likelihood_sum.log_lik == pytest.approx(float(ragged.likelihood_sum.log_lik), abs=1e-9)


@pytest.mark.parametrize("structure", ["diag", "kron", pl.Kron("reduce")])
def test_padding_that_attention_does_not_see_is_as_if_it_were_not_there(structure):
    x, y, mask = sequences()
    net = Attention()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(), mask="mask")
    point = point_of(net, model)
    padded = pl.fit_laplace(model, {"x": x, "y": y, "mask": mask}, point, structure=structure, **AS_GIVEN)
    each = [{"x": a, "y": b, "mask": torch.ones_like(b)} for a, b in alone(x, y, mask)]
    ragged = pl.fit_laplace(model, each, point, structure=structure, **AS_GIVEN)
    torch.testing.assert_close(padded.precision.to_dense(), ragged.precision.to_dense(), rtol=1e-8, atol=1e-9)
    assert padded.log_evidence == pytest.approx(ragged.log_evidence, abs=1e-8)


def test_a_single_label_may_be_left_out():
    x, y = torch.randn(9, 4), torch.randint(0, 3, (9,))
    net = Tagger()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    point, kept = point_of(net, model), torch.arange(9) != 4
    some = pl.fit_laplace(model, (x, torch.where(kept, y, -100)), point, **AS_GIVEN)
    fewer = pl.fit_laplace(model, (x[kept], y[kept]), point, **AS_GIVEN)
    torch.testing.assert_close(some.precision.to_dense(), fewer.precision.to_dense(), rtol=1e-10, atol=1e-10)
    assert some.log_evidence == pytest.approx(fewer.log_evidence, abs=1e-9)


def segmenter(classes=4):
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, classes, 1))


def images(num_obs=5, size=4, classes=4):
    g = generator()
    y = torch.randint(0, classes, (num_obs, size, size), generator=g)
    y[:, 0] = -100
    return torch.randn(num_obs, 2, size, size, generator=g), y


@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("structure", ["full", "diag"])
def test_segmentation_has_the_curvature_of_a_dense_reference(structure, subset):
    (x, y), net = images(), segmenter()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(axis=1))
    point = point_of(net, model)
    guide = pl.fit_laplace(model, (x, y), point, subset=subset, structure=structure, **AS_GIVEN)
    names = [name for name in point if name in guide.layout]
    precision = guide.precision.to_dense()
    expected = ggn(lambda net: net(x).movedim(1, -1), net, names, y) + torch.eye(len(precision))
    if structure == "diag":
        precision, expected = precision.diagonal(), expected.diagonal()
    torch.testing.assert_close(precision, expected, rtol=1e-8, atol=1e-10)


def test_a_last_layer_of_many_pixels_is_a_sum_over_them():
    (x, y), net = images(num_obs=3, size=32), segmenter()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(axis=1))
    guide = pl.fit_laplace(model, (x, y), point_of(net, model), subset="last_layer", **AS_GIVEN)
    with torch.no_grad():
        a = net[1](net[0](x)).movedim(1, -1)[y != -100]
        a = torch.cat([a, torch.ones(len(a), 1)], 1)
        p = net(x).movedim(1, -1)[y != -100].softmax(-1)
    information = p.diag_embed() - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("rop,ri,rj->oipj", information, a, a).reshape(16, 16)
    order = torch.cat([torch.arange(12).reshape(4, 3), torch.arange(12, 16).reshape(4, 1)], 1).reshape(-1)
    found = guide.precision.to_dense()[order][:, order] - torch.eye(16)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_factors_of_a_layer_of_pixels_are_their_sums():
    (x, y), net = images(), segmenter()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(axis=1))
    guide = pl.fit_laplace(model, (x, y), point_of(net, model), subset="last_layer", structure="kron", **AS_GIVEN)
    with torch.no_grad():
        a = net[1](net[0](x)).movedim(1, -1)[y != -100]
        a = torch.cat([a, torch.ones(len(a), 1)], 1)
        p = net(x).movedim(1, -1)[y != -100].softmax(-1)
    expected = torch.kron(p.sum(0).diag() - p.T @ p, a.T @ a / len(a))
    order = torch.cat([torch.arange(12).reshape(4, 3), torch.arange(12, 16).reshape(4, 1)], 1).reshape(-1)
    found = guide.precision.to_dense()[order][:, order] - torch.eye(16)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_labels_are_drawn_where_columns_are_too_many_and_that_is_said(structure):
    (x, y), net = images(num_obs=20), segmenter()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(axis=1))
    point = point_of(net, model)
    exact = pl.fit_laplace(model, (x, y), point, structure=structure, **AS_GIVEN).precision.to_dense()
    exact = exact - torch.eye(len(exact))
    with pl.settings.using(exact_columns=10, position_labels=400):
        with pytest.warns(pl.LaplaceWarning, match=r"64 columns a datum for 'y'.*400 labels drawn at each position"):
            drawn = pl.fit_laplace(model, (x, y), point, structure=structure, **AS_GIVEN)
        with pytest.warns(pl.LaplaceWarning, match="64 columns"):
            again = pl.fit_laplace(model, [(x[:7], y[:7]), (x[7:], y[7:])], point, structure=structure, **AS_GIVEN)
        last = {"subset": "last_layer", "structure": structure}
        direct = pl.fit_laplace(model, (x, y), point, **last, **AS_GIVEN).precision.to_dense()  # which says nothing
    torch.testing.assert_close(drawn.precision.to_dense(), again.precision.to_dense(), rtol=1e-10, atol=1e-10)
    estimate = drawn.precision.to_dense() - torch.eye(len(exact))
    assert float((estimate - exact).norm() / exact.norm()) < 0.03
    torch.testing.assert_close(
        direct, pl.fit_laplace(model, (x, y), point, **last, **AS_GIVEN).precision.to_dense(), rtol=1e-12, atol=0
    )


def test_a_masked_density_is_that_of_the_positions_that_count():
    x, y, mask = sequences()
    net = Tagger()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(), mask="attention_mask")
    values = {name: torch.randn(each.shape) for name, each in net.named_parameters()}
    logits = torch.func.functional_call(net, values, (x,))
    per_position = torch.distributions.Categorical(logits=logits).log_prob(y)
    prior = sum(torch.distributions.Normal(0.0, 1.0).log_prob(each).sum() for each in values.values())
    found = log_joint(model, values, x=x, y=torch.where(y == 2, -100, y), attention_mask=mask)
    expected = per_position[(mask == 1) & (y != 2)].sum() + prior
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_numbers_at_masked_positions_do_not_count():
    x, _, mask = sequences()
    y = torch.randn(8, 6, 3)
    net = Tagger()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Regression(0.3), mask="attention_mask")
    point = point_of(net, model)
    guide = pl.fit_laplace(model, {"x": x, "y": y, "attention_mask": mask}, point, **AS_GIVEN)
    plain = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Regression(0.3))
    ragged = pl.fit_laplace(plain, alone(x, y, mask), point, **AS_GIVEN)
    torch.testing.assert_close(guide.precision.to_dense(), ragged.precision.to_dense(), rtol=1e-10, atol=1e-10)


def test_a_mask_of_another_shape_is_refused():
    x, y, mask = sequences()
    model = pl.bayesianize(Tagger(), pl.nn.Isotropic(1.0), pl.nn.Classification(), mask="attention_mask")
    with pytest.raises(pl.LaplaceError, match=r"mask has shape \[8, 5\].*\[8, 6\]"):
        model(x=x, y=y, attention_mask=mask[:, :5])


# --- predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
@pytest.mark.parametrize("kind", ["tokens", "pixels"])
def test_predictions_of_a_last_layer_have_the_covariance_of_a_dense_reference(kind, structure):
    if kind == "tokens":
        x, y, _ = sequences()
        net, axis = Tagger(), -1
    else:
        (x, y), net, axis = images(), segmenter(), 1
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(axis=axis))
    guide = pl.fit_laplace(model, (x, y), point_of(net, model), subset="last_layer", structure=structure, **AS_GIVEN)
    fixed = {name: each.detach() for name, each in net.named_parameters()}
    free = {name: fixed[name] for name in guide.layout}

    def logits(values):
        return torch.func.functional_call(net, {**fixed, **values}, (x,)).movedim(axis, -1).flatten(1)

    jacobian = torch.func.jacrev(logits)(free)
    rows = torch.cat([jacobian[name].flatten(2) for name in guide.layout], -1)
    expected = rows @ guide.covariance @ rows.mT
    predict = pl.LinearizedPredictive(model, guide)
    mean, covariance = predict.latent(x)["y"]
    torch.testing.assert_close(mean.flatten(1), logits(free), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance, expected, rtol=1e-8, atol=1e-10)
    _, joint = predict.latent(x, joint=True)["y"]
    flat = rows.flatten(0, 1)
    torch.testing.assert_close(joint, flat @ guide.covariance @ flat.T, rtol=1e-8, atol=1e-10)
    variance = expected.diagonal(dim1=1, dim2=2).reshape(*y.shape, -1)
    probs = (logits(free).reshape(variance.shape) / (1 + torch.pi / 8 * variance).sqrt()).softmax(-1)
    torch.testing.assert_close(predict(x)["y"].base_dist.probs, probs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("kind", "structure"), [("tokens", "kron"), ("pixels", "full"), ("pixels", "kron")])
def test_predictions_of_all_layers_are_made_some_positions_at_a_time(kind, structure):
    if kind == "tokens":
        x, _, mask = sequences()
        net, axis, inputs = Attention(), -1, {"x": x, "mask": mask}
        y = torch.randint(0, 3, mask.shape)
    else:
        (x, y), net, axis = images(), segmenter(), 1
        inputs = {"input": x}
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(axis=axis))
    guide = pl.fit_laplace(model, inputs | {"y": y}, point_of(net, model), structure=structure, **AS_GIVEN)
    free = {name: each.detach() for name, each in net.named_parameters()}

    def logits(values):
        return torch.func.functional_call(net, values, (), inputs).movedim(axis, -1)

    with warnings.catch_warnings():  # torch speaks of how fast its own reference is
        warnings.filterwarnings("ignore", "There is a performance drop")
        jacobian = torch.func.jacrev(logits)(free)
    rows = torch.cat([jacobian[name].flatten(y.dim() + 1) for name in guide.layout], -1)
    variance = (rows @ guide.covariance * rows).sum(-1)
    expected = (logits(free) / (1 + torch.pi / 8 * variance).sqrt()).softmax(-1)
    with pl.settings.using(pass_elements=500, streamed_elements=1000):
        predict = pl.LinearizedPredictive(model, guide)
        torch.testing.assert_close(predict(**inputs)["y"].base_dist.probs, expected, rtol=1e-8, atol=1e-10)
        bridge = pl.LinearizedPredictive(model, guide, link="bridge")(**inputs)["y"].base_dist.probs
        whole = predict.latent(**inputs)["y"][1]
    torch.testing.assert_close(whole, rows.flatten(1, -2) @ guide.covariance @ rows.flatten(1, -2).mT)
    plain = pl.LinearizedPredictive(model, guide, link="bridge")(**inputs)["y"].base_dist.probs
    torch.testing.assert_close(bridge, plain, rtol=1e-8, atol=1e-10)


def test_positions_of_all_layers_are_drawn_together():
    (x, y), net = images(), segmenter()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification(axis=1))
    guide = pl.fit_laplace(model, (x, y), point_of(net, model), **AS_GIVEN)
    _, covariance = pl.LinearizedPredictive(model, guide).latent(x)["y"]
    with pl.settings.using(pass_elements=20_000, block_bytes=150_000):
        predict = pl.LinearizedPredictive(model, guide)
        with pytest.raises(pl.LaplaceError, match=r"all outputs at all positions.*\.sample"):
            predict.latent(x)
        with (
            pl.settings.using(exact_columns=10),
            pytest.warns(pl.LaplaceWarning, match=r"64 outputs a datum for 'y'.*\.sample"),
        ):
            predict(x)
        drawn = predict.sample(400, latent=True)(x)["y"]
    drawn = drawn - net(x).movedim(1, -1).flatten(1).detach()
    found = torch.einsum("sni,snj->nij", drawn, drawn) / len(drawn)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    expected = ((trace.square().sum() + covariance.square().sum()) / len(drawn)).sqrt()  # of a Wishart matrix
    assert 0.5 < float((found - covariance).norm() / expected) < 1.5


def test_positions_of_a_datum_are_drawn_together():
    x, y, _ = sequences()
    net = Tagger()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    guide = pl.fit_laplace(model, (x, y), point_of(net, model), subset="last_layer", **AS_GIVEN)
    predict = pl.LinearizedPredictive(model, guide)
    with pl.settings.using(block_bytes=1000), pytest.raises(pl.LaplaceError, match="fewer inputs at a time"):
        predict.latent(x)
    assert pl.LinearizedPredictive(model, guide).sample(7)(x)["y"].shape == (7, 8, 6)


class LastState(nn.Module):
    """A classifier of sequences by an LSTM's last state."""

    def __init__(self):
        super().__init__()
        self.table, self.lstm, self.out = nn.Embedding(7, 3), nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, words, lengths):
        words = nn.utils.rnn.pack_padded_sequence(self.table(words), lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.lstm(words)[1][0][-1])


def test_the_last_state_of_a_packed_sequence_is_refused_with_what_is_the_same():
    net = LastState()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    batch = torch.randint(0, 7, (6, 4)), torch.randint(1, 5, (6,)), torch.randint(0, 2, (6,))
    with pytest.raises(pl.UnsupportedProgram, match=r"the network packs its sequences.*lengths - 1.*last_layer"):
        pl.fit_laplace(model, batch, point_of(net, model), structure="diag", **AS_GIVEN)
    pl.fit_laplace(model, batch, point_of(net, model), subset="last_layer", **AS_GIVEN)
    words, lengths, _ = batch
    out = net.lstm(net.table(words))[0]
    same = net.out(out[torch.arange(len(out)), lengths - 1])
    torch.testing.assert_close(same, net(words, lengths))  # what the message says


def test_a_point_with_parameters_that_have_no_prior_is_told_how_to_leave_them_out():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    point = {name: weight.detach() for name, weight in net.named_parameters()}
    batch = torch.randn(6, 2), torch.randint(0, 2, (6,))
    with pytest.raises(
        pl.UnsupportedProgram, match=r"'1.weight', a parameter that has no prior.*if name in model.priors"
    ):
        pl.fit_laplace(model, batch, point, **AS_GIVEN)
