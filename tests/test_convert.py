"""`sparsify_` and `densify_`: the masked model's answers, nothing lost on the way, and clear refusals."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsebert import Ticket, densify_, plan, prune, sparsify_
from sparsebert.bert import resolve, structure
from sparsebert.nn import FusedActivation, SparseLinear

transformers = pytest.importorskip("transformers")

WIDTH = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
MODELS: dict[str, Callable[[], Any]] = {
    "BertModel": lambda: transformers.BertModel(transformers.BertConfig(**WIDTH)),
    "BertForMaskedLM": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**WIDTH)),
    "BertForSequenceClassification": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**WIDTH)
    ),
    "RobertaForTokenClassification": lambda: transformers.RobertaForTokenClassification(
        transformers.RobertaConfig(**WIDTH)
    ),
    "ElectraForPreTraining": lambda: transformers.ElectraForPreTraining(
        transformers.ElectraConfig(**WIDTH, embedding_size=16)
    ),
    "DistilBertForQuestionAnswering": lambda: transformers.DistilBertForQuestionAnswering(
        transformers.DistilBertConfig(
            dim=24, n_heads=3, hidden_dim=40, n_layers=2, vocab_size=50, max_position_embeddings=32
        )
    ),
}
TOKENS = torch.arange(2, 14).view(2, 6)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def build(name: str = "BertForSequenceClassification") -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def pruned(name: str = "BertForSequenceClassification", sparsity: float = 0.7) -> tuple[Any, Ticket]:
    """A model, untouched, and a ticket for it."""
    model = build(name)
    return model, prune(model, "magnitude", sparsity=sparsity)


def answers(model: Any, tokens: Tensor = TOKENS) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(tensor for tensor in model(tokens).to_tuple() if isinstance(tensor, Tensor))


def masked_answers(model: Any, ticket: Ticket) -> tuple[Tensor, ...]:
    return answers(ticket.apply_(copy.deepcopy(model)))


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class TestAnswers:
    @pytest.mark.parametrize("name", MODELS)
    def test_are_those_of_the_masked_model(self, name: str) -> None:
        model, ticket = pruned(name)
        expected = masked_answers(model, ticket)
        assert sparsify_(model, ticket, format="element") is model
        torch.testing.assert_close(answers(model), expected)
        assert len(sparse_layers(model)) == len(ticket.masks) == 12

    @pytest.mark.parametrize("format", ["auto", "element", "vector", "dense", "compact", "csr"])
    def test_do_not_depend_on_the_format(self, format: str) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format=format)
        torch.testing.assert_close(answers(model), expected)

    @pytest.mark.parametrize("fuse_qkv", [False, True])
    @pytest.mark.parametrize("fuse_activation", [False, True])
    def test_do_not_depend_on_fusing(self, fuse_qkv: bool, fuse_activation: bool) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element", fuse_qkv=fuse_qkv, fuse_activation=fuse_activation)
        torch.testing.assert_close(answers(model), expected)
        shared = {layer.shared_input for layer in sparse_layers(model).values()} - {None}
        assert len(shared) == (2 if fuse_qkv else 0)
        fused = [module for module in model.modules() if isinstance(module, FusedActivation)]
        assert len(fused) == (2 if fuse_activation else 0)

    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.bfloat16, 0.05), (torch.float16, 0.005), (torch.float64, 1e-12)],
        ids=str,
    )
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_come_in_every_dtype(self, dtype: torch.dtype, tolerance: float, when: str) -> None:
        model, ticket = pruned()
        expected = masked_answers(model.double(), ticket)
        model.float()
        if when == "before":
            sparsify_(model.to(dtype), ticket, format="element")
        else:
            sparsify_(model, ticket, format="element").to(dtype)
            tolerance = max(tolerance, 1e-6)
        got = answers(model)
        assert got[0].dtype == dtype
        torch.testing.assert_close(got[0].double(), expected[0], rtol=tolerance, atol=tolerance)

    def test_hold_for_zeros_already_in_the_weights(self) -> None:
        model, ticket = pruned()
        ticket.apply_(model)
        expected = answers(model)
        sparsify_(model, format="element")
        torch.testing.assert_close(answers(model), expected)
        assert len(sparse_layers(model)) == 12

    @pytest.mark.parametrize("keep", [False, True], ids=["all-zero", "full"])
    def test_hold_for_tickets_that_keep_nothing_or_all(self, keep: bool) -> None:
        model, ticket = pruned()
        ticket = Ticket({key: torch.full_like(mask, keep) for key, mask in ticket.masks.items()})
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket)
        torch.testing.assert_close(answers(model), expected)

    def test_hold_for_pruned_biases_and_removed_modules(self) -> None:
        model, ticket = pruned()
        gone = "encoder.layer.1.output.dense"
        masks = {**ticket.masks, gone: torch.zeros(24, 40, dtype=torch.bool)}
        biases = {"encoder.layer.0.output.dense": torch.rand(24) < 0.5}
        ticket = Ticket(masks, bias_masks=biases, removed=[gone])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element")
        torch.testing.assert_close(answers(model), expected)

    def test_hold_for_one_layer_of_the_ticket(self) -> None:
        model, ticket = pruned()
        key = "encoder.layer.0.attention.self.key"
        ticket = Ticket({key: ticket.masks[key]})
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element")
        torch.testing.assert_close(answers(model), expected)
        assert list(sparse_layers(model)) == [f"bert.{key}"]


class TestFilter:
    def test_picks_linear_layers_of_any_model(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)))
        with torch.no_grad():
            model[0].weight[::2] = 0
            x = torch.randn(3, 8)
            expected = model(x)
        seen = []
        sparsify_(model, filter=lambda name, linear: bool(seen.append(name)) or linear.in_features == 8)
        assert seen == ["0", "2.0", "2.1"]
        assert list(sparse_layers(model)) == ["0"]
        torch.testing.assert_close(model(x), expected)

    def test_narrows_a_ticket_down(self) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket, filter=lambda name, linear: name.endswith("query"), format="element")
        assert [name.rsplit(".", 1)[-1] for name in sparse_layers(model)] == ["query", "query"]

    def test_reaches_what_is_no_encoder_matrix(self) -> None:
        model = build()
        with torch.no_grad():
            model.classifier.weight[0] = 0
        expected = answers(model)
        sparsify_(model, filter=lambda name, linear: name == "classifier")
        assert list(sparse_layers(model)) == ["classifier"]
        torch.testing.assert_close(answers(model), expected)

    def test_without_one_takes_what_has_zeros(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        with torch.no_grad():
            model[1].weight[0] = 0
        sparsify_(model)
        assert list(sparse_layers(model)) == ["1"]

    def test_works_for_tickets_of_plain_models(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        mask = torch.rand(8, 8) < 0.5
        sparsify_(model, Ticket({"1": mask}), format="element")
        assert torch.equal(model[1].weight != 0, mask)


class TestWhatSurvives:
    def test_state_dict_keys_and_values(self) -> None:
        model, ticket = pruned()
        expected = weights(ticket.apply_(copy.deepcopy(model)))
        found = sparsify_(model, ticket, format="element").state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    def test_checkpoints_move_from_dense_to_sparse(self) -> None:
        model, ticket = pruned()
        trained = build()
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.mul_(1.5)
        ticket.apply_(trained)
        sparsify_(model, ticket, format="element").load_state_dict(trained.state_dict())
        torch.testing.assert_close(answers(model), answers(trained))

    def test_saved_models_load_as_dense_ones(self, tmp_path: Any) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element").save_pretrained(tmp_path)
        loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(answers(loaded), expected)

    @pytest.mark.parametrize(
        "twin_of",
        [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
        ids=["deepcopy", "pickle"],
    )
    @pytest.mark.parametrize("format", ["element", "dense"])
    def test_copies_answer_alike(self, twin_of: Any, format: str) -> None:
        model, ticket = pruned()
        twin = twin_of(sparsify_(model, ticket, format=format))
        torch.testing.assert_close(answers(twin), answers(model))
        torch.testing.assert_close(answers(densify_(twin)), answers(model))

    def test_parameters_are_the_ones_there_were(self) -> None:
        model, ticket = pruned()
        biases = {name: parameter for name, parameter in model.named_parameters() if name.endswith("bias")}
        sparsify_(model, ticket)
        assert all(model.get_parameter(name) is parameter for name, parameter in biases.items())

    def test_training_flag(self) -> None:
        for training in (True, False):
            model, ticket = pruned()
            sparsify_(model.train(training), ticket, format="element")
            assert all(module.training is training for module in model.modules())

    def test_hooks_and_their_handles(self) -> None:
        model, ticket = pruned()
        query = resolve(model, "encoder.layer.0.attention.self.query")
        fired: list[str] = []
        handles = [
            query.register_forward_hook(lambda *_: fired.append("forward")),
            query.register_forward_pre_hook(lambda *_: fired.append("before")),
            query.register_full_backward_hook(lambda *_: fired.append("backward")),
            query.register_state_dict_post_hook(lambda *_: fired.append("saved")),
            query.register_load_state_dict_pre_hook(lambda *_: fired.append("loading")),
        ]
        sparsify_(model, ticket, format="element")
        model(TOKENS).logits.sum().backward()
        model.load_state_dict(model.state_dict())
        assert fired == ["before", "forward", "backward", "saved", "loading"]
        for handle in handles:
            handle.remove()
        answers(model)
        model.load_state_dict(model.state_dict())
        assert len(fired) == 5

    def test_what_hooks_see_of_an_up_projection(self) -> None:
        """Fusing would show a hook the activated output, so a layer with hooks is left unfused."""
        model, ticket = pruned()
        seen: list[Tensor] = []
        up = [resolve(model, f"encoder.layer.{i}.intermediate.dense") for i in range(2)]
        up[0].register_forward_hook(lambda module, args, output: seen.append(output))
        expected = masked_answers(model, ticket)
        before = seen.pop()
        sparsify_(model, ticket, format="element")
        torch.testing.assert_close(answers(model), expected)
        torch.testing.assert_close(seen.pop(), before)
        names = [name for name, module in model.named_modules() if isinstance(module, FusedActivation)]
        assert names == ["bert.encoder.layer.1.intermediate.intermediate_act_fn"]

    def test_the_plan_with_what_was_fused(self) -> None:
        model, ticket = pruned()
        resolve(model, "encoder.layer.0.intermediate.dense").register_forward_hook(lambda *_: None)
        sparsify_(model, ticket, format="element")
        reasons = {layer.key: layer.reason for layer in plan(model).layers}
        assert reasons["encoder.layer.0.intermediate.dense"] == "asked for; gelu not fused: hooks look at it"
        assert reasons["encoder.layer.1.intermediate.dense"] == "asked for; gelu fused"
        assert reasons["encoder.layer.1.attention.self.key"] == "asked for; one call for 3 layers"
        assert reasons["encoder.layer.1.output.dense"] == "asked for"

    def test_reports_of_the_model(self) -> None:
        model, ticket = pruned()
        dense = model.get_memory_footprint()
        sparsify_(model, ticket, format="element")
        assert 0 < model.get_memory_footprint() < dense
        assert sum(buffer.nbytes for buffer in model.buffers()) > 0
        assert "SparseLinear(" in repr(model)
        assert model.num_parameters() > 0


class TestDensify:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
    @pytest.mark.parametrize("format", ["element", "vector", "dense", "compact", "csr"])
    def test_gives_the_values_back_bit_for_bit(self, format: str, dtype: torch.dtype) -> None:
        model, ticket = pruned()
        model.to(dtype)
        expected = ticket.apply_(copy.deepcopy(model))
        assert densify_(sparsify_(model, ticket, format=format)) is model
        found = model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
        assert [type(module) for module in model.modules()] == [type(module) for module in expected.modules()]
        assert all(torch.equal(*pair) for pair in zip(answers(model), answers(expected), strict=True))

    def test_keeps_hooks_and_training_flag(self) -> None:
        model, ticket = pruned()
        fired: list[str] = []
        sparsify_(model.train(), ticket)
        handle = model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *_: fired.append("x"))
        densify_(model)
        assert all(module.training for module in model.modules())
        answers(model)
        handle.remove()
        answers(model)
        assert fired == ["x"]

    def test_keeps_frozen_weights_frozen(self) -> None:
        model, ticket = pruned()
        model.bert.requires_grad_(False)
        before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        densify_(sparsify_(model, ticket))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before

    def test_in_inference_mode_gives_a_model_that_can_be_trained(self) -> None:
        model, ticket = pruned()
        with torch.inference_mode():
            sparsify_(model, ticket, format="element")
        model(TOKENS).logits.sum().backward()
        with torch.inference_mode():
            densify_(model)
        model(TOKENS).logits.sum().backward()
        assert model.bert.encoder.layer[0].output.dense.weight.grad is not None

    def test_leaves_a_dense_model_alone(self) -> None:
        model = build()
        modules = list(model.modules())
        assert all(a is b for a, b in zip(densify_(model).modules(), modules, strict=True))

    def test_and_sparsify_again(self) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(densify_(sparsify_(model, ticket)), format="element")
        torch.testing.assert_close(answers(model), expected)


class TestTraining:
    def test_of_a_ticket_stays_within_its_masks(self) -> None:
        model, ticket = pruned()
        sparsify_(model.train(), ticket, trainable=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            loss = model(TOKENS, labels=torch.tensor([0, 1])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0]
        for key, mask in ticket.masks.items():
            assert not resolve(model, key).weight[~mask].any()
        densify_(model.eval())
        Ticket(ticket.masks).check(model)

    def test_gradients_are_those_of_the_masked_model(self) -> None:
        model, ticket = pruned()
        dense = ticket.apply_(copy.deepcopy(model))
        sparsify_(model, ticket, trainable=True)
        for each in (model, dense):
            each(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
        for key, mask in ticket.masks.items():
            layer = resolve(model, key)
            own = layer.packed.replace(values=layer.values.grad).to_dense()
            torch.testing.assert_close(own, resolve(dense, key).weight.grad * mask, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            model.bert.embeddings.word_embeddings.weight.grad,
            dense.bert.embeddings.word_embeddings.weight.grad,
            rtol=1e-4,
            atol=1e-6,
        )


class TestCompilers:
    def test_compile_a_whole_model(self) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket, format="element")
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(answers(compiled), answers(model))

    def test_export_a_whole_model(self) -> None:
        model, ticket = pruned("BertModel")
        sparsify_(model, ticket, format="element")
        file = io.BytesIO()
        with torch.no_grad():
            torch.export.save(torch.export.export(model, (TOKENS,), strict=False), file)
        file.seek(0)
        loaded: Any = torch.export.load(file).module()
        torch.testing.assert_close(loaded(TOKENS).last_hidden_state.detach(), answers(model)[0])

    def test_autocast_a_whole_model(self) -> None:
        model, ticket = pruned()
        expected = masked_answers(model, ticket)
        sparsify_(model, ticket, format="element")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = answers(model)
        torch.testing.assert_close(got[0].float(), expected[0], rtol=0.05, atol=0.05)


def other_shapes(ticket: Ticket) -> Ticket:
    return Ticket({key: mask[:, :-1] for key, mask in ticket.masks.items()})


def tied(model: Any) -> None:
    layers = model.bert.encoder.layer
    layers[0].output.dense.weight = layers[1].output.dense.weight


def parametrized(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)


def torch_pruned(model: Any) -> None:
    torch_prune.l1_unstructured(model.bert.encoder.layer[0].output.dense, "weight", 0.5)


def quantised(model: Any) -> None:
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.requires_grad_(False).data = weight.data.to(torch.int8)


def patched(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.forward = lambda x: x


def on_meta(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.to("meta")


class TestRefusals:
    """Always a ValueError in one line, and the model as it was."""

    def refused(self, model: nn.Module, complaint: str, **options: Any) -> None:
        modules = dict(model.named_modules())
        tensors = {name: (t, t._version) for name, t in [*model.named_parameters(), *model.named_buffers()]}
        with pytest.raises(ValueError, match=complaint) as caught:
            sparsify_(model, **options)
        assert "\n" not in str(caught.value)
        assert dict(model.named_modules()) == modules
        after = {name: (t, t._version) for name, t in [*model.named_parameters(), *model.named_buffers()]}
        assert after.keys() == tensors.keys()
        assert all(after[name][0] is t and after[name][1] == v for name, (t, v) in tensors.items())

    def test_nothing_to_sparsify(self) -> None:
        self.refused(
            build(), "nothing to sparsify: BertForSequenceClassification has no linear layer with zeros"
        )
        self.refused(nn.Sequential(nn.ReLU()), "nothing to sparsify: Sequential")
        self.refused(build(), "picked by the filter", filter=lambda name, linear: False)
        model, ticket = pruned()
        self.refused(model, "picked by the filter", ticket=ticket, filter=lambda name, linear: False)

    def test_a_second_time(self) -> None:
        model, ticket = pruned()
        sparsify_(model, ticket)
        self.refused(model, "is sparse already: densify_ the model first", ticket=ticket)
        self.refused(model, "is sparse already", filter=lambda name, linear: name == "classifier")

    def test_a_ticket_of_another_model(self) -> None:
        model, ticket = pruned()
        self.refused(model, "ticket of another model", ticket=pruned("DistilBertForQuestionAnswering")[1])
        self.refused(model, "ticket of another model", ticket=other_shapes(ticket))
        self.refused(model, "a sparsebert.Ticket is needed", ticket=dict(ticket.masks))

    def test_a_ticket_for_what_is_no_linear_layer(self) -> None:
        mask = torch.ones(50, 24, dtype=torch.bool)
        ticket = Ticket({"embeddings.word_embeddings": mask})
        self.refused(build(), "word_embeddings is a Embedding, not a linear layer", ticket=ticket)

    def test_unknown_options(self) -> None:
        model, ticket = pruned()
        self.refused(model, "unknown format 'elemen'.*did you mean 'element'", ticket=ticket, format="elemen")
        for tokens in (0, -1, 1.5, True):
            self.refused(model, "a positive number of rows of x is needed", ticket=ticket, tokens=tokens)

    def test_formats_that_cannot_be_trained(self) -> None:
        model, ticket = pruned()
        for format in ("dense", "vector"):
            self.refused(model, "cannot train", ticket=ticket, format=format, trainable=True)
        self.refused(model.double(), "float64", ticket=ticket, trainable=True)

    def test_a_plan_of_another_model(self) -> None:
        model, ticket = pruned()
        key = "encoder.layer.0.attention.self.key"
        other = plan(model, Ticket({key: ticket.masks[key]}), measure=False)
        self.refused(model, "the plan is of another model or ticket", ticket=ticket, format=other)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (tied, r"output.dense.weight is tied to bert.encoder.layer.1.output.dense.weight"),
            (parametrized, r"undo its parametrization"),
            (torch_pruned, r"torch.nn.utils.prune.remove"),
            (quantised, r"quantised or holds a special tensor"),
            (patched, r"forward method of bert.encoder.layer.0.output.dense is patched"),
            (on_meta, r"on the meta device"),
        ],
    )
    def test_layers_that_cannot_be_packed(self, change: Callable[[Any], None], complaint: str) -> None:
        model, ticket = pruned()
        half = {key: mask.clone() for key, mask in ticket.masks.items()}
        half["encoder.layer.0.output.dense"] = half["encoder.layer.1.output.dense"]
        change(model)
        self.refused(model, complaint, ticket=Ticket(half))

    def test_a_linear_layer_by_itself(self) -> None:
        linear = nn.Linear(4, 4)
        with torch.no_grad():
            linear.weight[0] = 0
        self.refused(linear, "use SparseLinear.from_linear", filter=lambda name, linear: True)

    def test_a_layer_that_two_modules_use(self) -> None:
        shared = nn.Linear(4, 4)
        with torch.no_grad():
            shared.weight[0] = 0
        model = nn.Sequential(shared, nn.ReLU(), shared)
        self.refused(model, "0.weight is tied to 2.weight", filter=lambda name, linear: True)
        self.refused(model, "nothing to sparsify")

    def test_subclasses_of_linear(self) -> None:
        model = nn.MultiheadAttention(8, 2)
        with torch.no_grad():
            model.out_proj.weight[0] = 0
        self.refused(model, "only a plain nn.Linear can be packed", filter=lambda name, linear: True)


def test_structure_of_a_sparse_model_is_still_known() -> None:
    model, ticket = pruned()
    before = structure(model)
    sparsify_(model, ticket)
    after = structure(model)
    assert (after.linears, after.shared_inputs) == (before.linears, before.shared_inputs)


@pytest.mark.gpu
def test_on_the_gpu_the_layers_stay_dense_and_masked() -> None:
    model, ticket = pruned()
    expected = masked_answers(model, ticket)
    sparsify_(model.cuda(), ticket, format="element")
    assert {layer.format for layer in sparse_layers(model).values()} == {"dense"}
    got = answers(model, TOKENS.cuda())
    torch.testing.assert_close(got[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(answers(model.cpu()), expected)
