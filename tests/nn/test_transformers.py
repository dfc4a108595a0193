"""Networks of Hugging Face's `transformers`, made here with random weights, and adapters of `peft`."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from nn.test_signatures import AS_GIVEN, ggn, point_of
from programs.zoo import generator
from torch import nn
from torch.utils.data import DataLoader, default_collate

import pyro_laplace as pl

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("float64")

TINY = {
    "vocab_size": 9,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 5,
    "max_position_embeddings": 8,
    "type_vocab_size": 1,
    "num_labels": 3,
    "initializer_range": 0.5,  # the weights of a network that was trained, and not those of one that says nothing yet
}
KINDS = ["sequences", "tokens"]


def classifier(kind, **config):
    config = transformers.BertConfig(**TINY | config)
    of_kind = {
        "sequences": transformers.BertForSequenceClassification,
        "tokens": transformers.BertForTokenClassification,
    }
    return of_kind[kind](config).double().eval()


def texts(kind, num_obs=8, length=6):
    """Sentences of several lengths, padded by a word that occurs in them too, as a dataset has them: row by row."""
    g = generator()
    ids = torch.randint(0, 9, (num_obs, length), generator=g)
    mask = torch.ones_like(ids)
    mask[::2, length - 2 :] = 0
    mask[0, 3:] = 0
    labels = torch.randint(0, 3, (num_obs,) if kind == "sequences" else ids.shape, generator=g)
    labels = labels if kind == "sequences" else torch.where(mask == 1, labels, -100)
    return [
        {"input_ids": words, "attention_mask": counts, "labels": label}
        for words, counts, label in zip(ids, mask, labels, strict=True)
    ]


def encoded(rows):
    """As tokenizers' collators make batches of them: a mapping that is no dict."""
    return transformers.BatchEncoding(default_collate(rows))


def loader(rows, size=3):
    return DataLoader(rows, batch_size=size, collate_fn=encoded)


def apart(rows):
    """Each sentence without its padding, a batch of its own."""
    kept = [
        {name: each[row["attention_mask"] == 1] if each.dim() else each for name, each in row.items()} for row in rows
    ]
    return [encoded([row]) for row in kept]


def inputs_of(rows):
    return {name: each for name, each in default_collate(rows).items() if name != "labels"}


def model_of(net, **options):
    return pl.bayesianize(
        net, pl.nn.Isotropic(1.0), pl.nn.Classification(), output="logits", target="labels", **options
    )


def reference(net, rows, names):
    """The dense curvature; of the padding word's row too, whose derivative torch's layer leaves out."""
    net = copy.deepcopy(net)
    for each in net.modules():
        if isinstance(each, nn.Embedding):
            each.padding_idx = None
    return ggn(lambda call: call(**inputs_of(rows)).logits, net, names, default_collate(rows)["labels"])


@pytest.mark.parametrize("subset", ["last_layer", "*"])
@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_that_of_a_dense_reference(kind, subset):
    rows, net = texts(kind), classifier(kind)
    model = model_of(net)
    point = point_of(net, model)
    for structure in ("full", "diag"):
        guide = pl.fit_laplace(model, loader(rows), point, subset=subset, structure=structure, **AS_GIVEN)
        precision = guide.precision.to_dense()
        expected = reference(net, rows, list(guide.layout)) + torch.eye(len(precision))
        if structure == "diag":
            precision, expected = precision.diagonal(), expected.diagonal()
        torch.testing.assert_close(precision, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("structure", ["full", "kron", pl.Kron("reduce")])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_as_if_it_were_not_there(kind, structure):
    """Also in Kronecker factors of a classifier of whole sentences, which has no labels at positions to say so."""
    rows, net = texts(kind, num_obs=4), classifier(kind)
    prior = {"*position_embeddings*": None, "*": pl.nn.Isotropic(1.0)}
    model = pl.bayesianize(net, prior, pl.nn.Classification(), output="logits", target="labels")
    options = {"structure": structure, **AS_GIVEN}
    padded = pl.fit_laplace(model, loader(rows), point_of(net, model), **options)
    ragged = pl.fit_laplace(model, apart(rows), point_of(net, model), **options)
    torch.testing.assert_close(padded.precision.to_dense(), ragged.precision.to_dense(), rtol=1e-8, atol=1e-9)
    assert padded.log_evidence == pytest.approx(ragged.log_evidence, abs=1e-8)


# --- adapters --------------------------------------------------------------------------------------


def adapted(kind):
    """A network with low-rank adapters that have learned something."""
    task = {"sequences": "SEQ_CLS", "tokens": "TOKEN_CLS"}[kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's
        net = peft.get_peft_model(
            classifier(kind), peft.LoraConfig(task_type=task, r=2, target_modules=["query", "value"])
        )
    for name, each in net.named_parameters():
        if "lora_B" in name:  # zero until it is trained
            nn.init.normal_(each, generator=generator())
    return net.double().eval()


@pytest.mark.parametrize(("kind", "subset"), [("sequences", "*"), ("sequences", "*lora_A*"), ("tokens", "*lora_B*")])
def test_adapters_as_the_random_part_have_the_curvature_of_a_dense_reference(kind, subset):
    rows, net = texts(kind), adapted(kind)
    model = model_of(net, parameters="*lora_*")
    point = point_of(net, model)
    assert point
    assert all("lora_" in name for name in point)
    for structure in ("full", "diag", "kron"):
        options = {"subset": subset, "structure": structure, **AS_GIVEN}
        guide = pl.fit_laplace(model, loader(rows), point, **options)
        precision = guide.precision.to_dense()
        if structure == "kron":
            expected = pl.fit_laplace(model, loader(rows, size=8), point, **options).precision.to_dense()
        else:
            expected = reference(net, rows, list(guide.layout)) + torch.eye(len(precision))
        if structure == "diag":
            precision, expected = precision.diagonal(), expected.diagonal()
        torch.testing.assert_close(precision, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_adapters_have_the_covariance_of_a_dense_reference(kind):
    rows, net = texts(kind), adapted(kind)
    model = model_of(net, parameters="*lora_*")
    guide = pl.fit_laplace(model, loader(rows), point_of(net, model), **AS_GIVEN)
    fixed = {name: each.detach() for name, each in net.named_parameters()}
    free = {name: fixed[name] for name in guide.layout}

    def logits(values):
        return torch.func.functional_call(net, {**fixed, **values}, (), inputs_of(rows)).logits

    with warnings.catch_warnings():  # torch speaks of how fast its own reference is
        warnings.filterwarnings("ignore", "There is a performance drop")
        mean, each = logits(free), torch.func.jacrev(logits)(free)
    jacobian = torch.cat([each[name].flatten(mean.dim()) for name in guide.layout], -1)
    predict = pl.LinearizedPredictive(model, guide)
    variance = torch.einsum("...p,pq,...q->...", jacobian, guide.covariance, jacobian)
    probs = (mean / (1 + torch.pi / 8 * variance).sqrt()).softmax(-1)
    found = predict(**inputs_of(rows))["y"]
    found = found.probs if kind == "sequences" else found.base_dist.probs
    torch.testing.assert_close(found, probs, rtol=1e-8, atol=1e-10)


# --- weights that are used twice -------------------------------------------------------------------


def test_a_language_model_whose_words_are_its_last_layer_has_the_curvature_of_a_dense_reference():
    rows = [{name: row[name] for name in ("input_ids", "attention_mask", "labels")} for row in texts("tokens")]
    config = transformers.GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=2, initializer_range=0.5)
    net = transformers.GPT2LMHeadModel(config).double().eval()
    assert net.lm_head.weight is net.transformer.wte.weight
    model = model_of(net)
    point = point_of(net, model)
    assert "lm_head.weight" not in point
    for structure in ("full", "diag"):
        guide = pl.fit_laplace(model, loader(rows), point, structure=structure, **AS_GIVEN)
        precision = guide.precision.to_dense()
        expected = reference(net, rows, list(guide.layout)) + torch.eye(len(precision))
        if structure == "diag":
            precision, expected = precision.diagonal(), expected.diagonal()
        torch.testing.assert_close(precision, expected, rtol=1e-8, atol=1e-10)
    with pytest.raises(pl.LaplaceError, match=r"'transformer.wte.weight'\] share a part of a weight"):
        pl.fit_laplace(model, loader(rows), point, structure="kron", **AS_GIVEN)


# --- the page --------------------------------------------------------------------------------------


def test_the_blocks_of_the_page_run():
    page = (Path(__file__).parents[2] / "docs" / "nn.md").read_text()
    section = page[page.index("### Hugging Face") :]
    whole, adapters = re.findall(r"```python\n(.*?)```", section[: section.index("\n## ")], flags=re.DOTALL)
    rows = texts("sequences")
    names = {"pl": pl, "peft": peft, "train": loader(rows), "inputs": inputs_of(rows)}
    for block, net in ((whole, classifier("sequences")), (adapters, adapted("sequences"))):
        names["net"] = net
        exec(compile(block, "docs/nn.md", "exec"), names)
        assert names["probs"].shape == (8, 3)
    assert all("lora_" in name for name in names["guide"].layout)
