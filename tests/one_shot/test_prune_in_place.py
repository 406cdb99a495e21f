"""``prune_`` changes a model layer by layer, and says what it did in the ticket."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch

from sparsebert import Ticket, prune_
from sparsebert.bert import resolve, structure
from sparsebert.one_shot import LayerProblem, SparseGPT, Target, Wanda
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.provenance import weight_hash

transformers = pytest.importorskip("transformers")


STAGES = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("attention.output.dense",),
    ("intermediate.dense",),
    ("output.dense",),
)


def bert(cls=None, **options):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    config = transformers.BertConfig(num_hidden_layers=2, **small | options)
    model = (cls or transformers.BertModel)(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return model


def batches(count=8, texts=8, length=9):
    return [
        {"input_ids": torch.randint(50, (texts, length)), "attention_mask": padded(texts, length)}
        for _ in range(count)
    ]


def padded(texts, length):
    mask = torch.ones(texts, length, dtype=torch.int64)
    mask[: texts // 2, length - 3 :] = 0
    return mask


@torch.no_grad()
def inputs_of(linear, model, data):
    """The inputs of a matrix over all real tokens, float64 [tokens, in]."""
    seen = []
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in data:
        model(**batch)
    handle.remove()
    return torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, data, strict=True)]).double()


@torch.no_grad()
def distance(model, other, data):
    """Relative squared distance between the hidden states of two models, on real tokens."""
    pairs = [(model(**batch)[0], other(**batch)[0], batch["attention_mask"].bool()) for batch in data]
    change = sum(float((a[mask] - b[mask]).square().sum()) for a, b, mask in pairs)
    return change / sum(float(a[mask].square().sum()) for a, _, mask in pairs)


def test_as_published_each_matrix_reproduces_its_outputs_on_the_pruned_models_inputs():
    model, data = bert(), batches()
    expected = copy.deepcopy(model)
    for layer in expected.encoder.layer:
        for keys in STAGES:
            inputs = inputs_of(layer.get_submodule(keys[0]), expected, data)
            hessian = 2 * inputs.T @ inputs / len(inputs)
            for key in keys:
                linear = layer.get_submodule(key)
                (group,) = unit_groups("element", None, {key: linear.weight.shape}, None)
                problem = LayerProblem(key, linear.weight.detach().double(), hessian, len(inputs))
                linear.weight.data = (
                    SparseGPT().prune_layer(problem, Target(group, Fraction(1, 2))).weight.float()
                )
    prune_(model, "sparsegpt", sparsity=0.5, data=data, reproduce="layer", allocate="uniform")
    for key in structure(model).linears:
        torch.testing.assert_close(
            resolve(model, key).weight, resolve(expected, key).weight, rtol=1e-3, atol=1e-4
        )


def test_the_weights_that_the_masks_prune_are_zero_and_each_matrix_keeps_its_share():
    model = bert()
    ticket = prune_(model, "sparsegpt", sparsity=0.75, data=batches(), allocate="uniform")
    assert list(ticket.masks) == list(structure(model).linears)
    for key, mask in ticket.masks.items():
        weight = resolve(model, key).weight
        assert not weight[~mask].any()
        assert int(mask.sum()) == mask.numel() // 4
    assert Ticket.from_model(model).sparsity == pytest.approx(0.75, abs=0.001)


def test_matrices_may_have_granularities_and_densities_of_their_own():
    model, (first, second, *others) = bert(), structure(bert()).linears
    ticket = prune_(
        model,
        "sparsegpt",
        sparsity=0.5,
        data=batches(2),
        densities={first: 0.25, second: 1},
        granularities={first: "4x1", second: "row"},
    )
    rows = ticket.masks[first].unflatten(0, (-1, 4))
    assert torch.equal(rows.all(1), rows.any(1))
    assert float(ticket.masks[first].float().mean()) == pytest.approx(0.25, abs=0.02)
    assert ticket.masks[second].all()
    assert float(ticket.masks[others[0]].float().mean()) == pytest.approx(0.5, abs=0.02)
    assert ticket.metadata["granularities"] == {first: "4x1", second: "row"}
    assert ticket.metadata["granularity"] == "4x1,element,row"
    assert ticket.metadata["densities"][first] == 0.25
    assert ticket.metadata["allocate"] == "uniform"


def test_a_ticket_says_that_its_densities_were_given():
    given = dict.fromkeys(structure(bert()).linears, 0.5)
    ticket = prune_(bert(), "wanda", sparsity=0.5, data=batches(1), densities=given)
    assert ticket.metadata["allocate"] == "densities"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularities": {"encoder.layer.9": "4x1"}}, "unknown matrix in granularities 'encoder.layer.9'"),
        (
            {"granularities": {"encoder.layer.0.output.dense": "head"}},
            "granularity of encoder.layer.0.output.dense must be element, block, panel, row or column",
        ),
        (
            {"granularities": {"encoder.layer.0.output.dense": "4x1"}, "allocate": "error"},
            "allocate='error' chooses the density of each matrix and conflicts with granularities",
        ),
    ],
    ids=str,
)
def test_granularities_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prune_(bert(), "sparsegpt", sparsity=0.5, data=batches(1), **options)


def test_to_reproduce_the_dense_model_ends_nearer_to_it():
    data, fresh = batches(24), batches(8)
    dense = bert()
    near, published, magnitude = (copy.deepcopy(dense) for _ in range(3))
    prune_(near, "sparsegpt", sparsity=0.7, data=data)
    prune_(published, "sparsegpt", sparsity=0.7, data=data, reproduce="layer", allocate="uniform")
    prune_(magnitude, "wanda", sparsity=0.7, data=data)
    errors = [distance(dense, model, fresh) for model in (near, published, magnitude)]
    assert errors == sorted(errors)
    assert errors[0] < 0.8 * errors[1]


def test_wanda_changes_no_weight_that_stays():
    model = bert()
    before = {key: resolve(model, key).weight.detach().clone() for key in structure(model).linears}
    biases = [resolve(model, key).bias.detach().clone() for key in before]
    ticket = prune_(model, Wanda(), sparsity=0.5, data=batches(), allocate="uniform")
    for key, weight in before.items():
        assert torch.equal(resolve(model, key).weight, weight.where(ticket.masks[key], 0.0))
        assert (ticket.masks[key].sum(1) == weight.shape[1] // 2).all()
    assert all(torch.equal(resolve(model, key).bias, bias) for key, bias in zip(before, biases, strict=True))
    assert ticket.metadata["reproduce"] == "layer"


@pytest.mark.parametrize(
    ("options", "sparsity"),
    [
        ({"granularity": "4x1"}, 0.75),
        ({"granularity": "block", "block_size": (16, 8)}, 0.5),
        ({"granularity": "panel(16,2)", "round_to": 8}, 0.5),
        ({"granularity": "row"}, 0.25),
        ({"granularity": "2:4", "sparsity": None}, 0.5),
    ],
    ids=lambda value: value.get("granularity") if isinstance(value, dict) else "",
)
def test_every_granularity_of_single_matrices(options, sparsity):
    model = bert()
    ticket = prune_(model, data=batches(2), **{"sparsity": sparsity} | options)
    assert ticket.sparsity == pytest.approx(sparsity, abs=0.02)
    for mask in ticket.masks.values():
        if options["granularity"] == "4x1":
            assert (mask.view(-1, 4, mask.shape[1]).float().mean(1) % 1 == 0).all()
        if options["granularity"] == "2:4":
            assert (mask.view(-1, 4).sum(1) == 2).all()
        if "panel" in options["granularity"]:
            assert (mask.view(-1, 16, mask.shape[1])[:, 0].sum(1) % 8 == 0).all()


def test_densities_set_the_share_of_single_matrices():
    model = bert()
    key = structure(model).linears[0]
    ticket = prune_(model, sparsity=0.5, densities={key: 0.25}, data=batches(2))
    assert ticket.layer_sparsity[key] == 0.75
    assert set(ticket.layer_sparsity.values()) == {0.5, 0.75}


def test_the_ticket_knows_the_changed_weights_the_data_and_the_errors():
    model = bert()
    before = weight_hash(model)
    ticket = prune_(model, SparseGPT(damping=0.1), sparsity=0.5, data=batches(3))
    metadata = ticket.metadata
    assert metadata["model"]["weights"] == weight_hash(model) != before
    assert metadata["model"]["dense_weights"] == before
    assert metadata["options"] == {"damping": 0.1, "columns": 128}
    assert metadata["calibration"]["texts"] == 24
    assert metadata["calibration"]["tokens"] == 3 * (8 * 9 - 4 * 3)
    assert metadata["errors"].keys() == ticket.masks.keys()
    assert all(0 < error < 1 for error in metadata["errors"].values())


def test_neither_labels_nor_padding_matter():
    model = bert(transformers.BertForSequenceClassification)
    data = batches(2)
    other = copy.deepcopy(model)
    ticket = prune_(model, sparsity=0.5, data=data)
    for batch in data:
        batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"].bool(), 7)
        batch["labels"] = torch.full((8,), 10**6)
    assert prune_(other, sparsity=0.5, data=data) == ticket


def test_the_mode_of_the_model_and_its_gradients_stay():
    model = bert().train()
    prune_(model, sparsity=0.5, data=batches(1))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_killed_run_goes_on_after_its_last_layer_and_ends_the_same(tmp_path):
    model, whole, data = bert(), bert(), batches(2)
    expected = prune_(whole, sparsity=0.5, data=data)
    checkpoint = tmp_path / "unfinished"

    def kill(report):
        if report.step == "prune" and report.key.startswith("encoder.layer.1.output"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_(copy.deepcopy(model), sparsity=0.5, data=data, checkpoint=checkpoint, progress=kill)
    done = []
    resumed = prune_(model, sparsity=0.5, data=data, checkpoint=checkpoint, progress=done.append)
    assert {report.key.split(".")[2] for report in done} == {"1"}
    assert resumed == expected
    assert weight_hash(model) == weight_hash(whole)
    with pytest.raises(ValueError, match="belongs to a run with other options, data or weights"):
        prune_(bert(), sparsity=0.6, data=data, checkpoint=checkpoint)
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not the checkpoint of a one-shot run"):
        prune_(bert(), sparsity=0.5, data=data, checkpoint=checkpoint)


def test_progress_tells_what_is_left():
    reports = []
    prune_(bert(), sparsity=0.5, data=batches(1), progress=reports.append)
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert reports[-1].done == pytest.approx(1)
    assert reports[-1].seconds_left == pytest.approx(0)


def broken(model):
    model.encoder.layer[1].intermediate.dense.bias.data[0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sparsgpt"}, "one-shot method.*'sparsegpt'"),
        ({"method": "magnitude"}, "needs no calibration: call prune"),
        ({"sparsity": None}, "sparsity is missing"),
        ({"granularity": "head+mlp"}, "granularity 'head.mlp' does not fit method sparsegpt"),
        ({"reproduce": "dens"}, "value of reproduce.*'dense'"),
        ({"data": []}, "data holds no batch"),
        ({"data": "texts"}, "data must be batches"),
        ({"data": ["a text"]}, "data holds texts: pass the model's tokenizer"),
        ({"data": [[1, 2]]}, "a batch must be a mapping"),
        ({"data": [{"input_ids": torch.ones(1, 600, dtype=torch.int64)}]}, "600 tokens .* 512 positions"),
        ({"densities": {"encoder.layer.9": 0.5}}, "matrix in densities"),
        ({"densities": {"encoder.layer.0.output.dense": 1.5}}, "must be above 0 and at most 1, got 1.5"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(options, message):
    model = bert()
    arguments = {"method": "sparsegpt", "sparsity": 0.5, "data": batches(1)} | options
    before = weight_hash(model)
    with pytest.raises(ValueError, match=message) as error:
        prune_(model, arguments.pop("method"), **arguments)
    assert "\n" not in str(error.value)
    assert weight_hash(model) == before


def test_activations_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match=r"encoder.layer.1.output.dense hold NaN or infinity"):
        prune_(broken(bert()), sparsity=0.5, data=batches(1))


def test_a_singular_hessian_names_its_matrix_or_gives_way_to_magnitude():
    data = [{"input_ids": torch.zeros(1, 1, dtype=torch.int64)}]
    with pytest.raises(ValueError, match=r"the Hessian of encoder.layer.0.attention.self.query is singular"):
        prune_(bert(), SparseGPT(damping=0), sparsity=0.5, data=data)
    with pytest.warns(UserWarning, match="pruned by magnitude"):
        prune_(bert(), SparseGPT(damping=0), sparsity=0.5, data=data, magnitude_where_singular=True)
