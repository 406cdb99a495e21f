"""SparseLinear: the answers of the masked dense layer, and everything a torch module has to survive."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert.nn.sparse_linear import SparseLinear
from tests.copies import copies_of
from tests.nn.replicas import replica
from tests.nn.sparse_layers import DTYPES, FORMATS, assert_answers, layer_and_mask, masked


class TestAnswers:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("format", FORMATS)
    def test_are_those_of_the_masked_dense_layer(self, format: str, dtype: torch.dtype) -> None:
        linear, mask = layer_and_mask()
        linear.to(dtype)
        layer = SparseLinear.from_linear(linear, mask, format)
        assert_answers(layer, linear, mask, torch.randn(7, 40, dtype=dtype))

    @pytest.mark.parametrize("format", FORMATS)
    def test_hold_for_sizes_that_are_multiples_of_nothing(self, format: str) -> None:
        for out_features, in_features in ((1, 1), (3, 5), (17, 129), (33, 7)):
            linear, mask = layer_and_mask(out_features, in_features)
            layer = SparseLinear.from_linear(linear, mask, format)
            assert_answers(layer, linear, mask, torch.randn(5, in_features))

    @pytest.mark.parametrize("format", FORMATS)
    def test_hold_for_masks_that_keep_nothing_or_everything(self, format: str) -> None:
        for keep in (False, True):
            linear, mask = layer_and_mask()
            layer = SparseLinear.from_linear(linear, torch.full_like(mask, keep), format)
            assert layer.sparsity == 1 - keep
            assert_answers(layer, linear, torch.full_like(mask, keep), torch.randn(3, 40))

    @pytest.mark.parametrize("format", FORMATS)
    def test_keep_the_leading_dimensions_of_x(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format)
        for shape in ((40,), (0, 40), (2, 0, 40), (2, 3, 40)):
            assert_answers(layer, linear, mask, torch.randn(shape))

    @pytest.mark.parametrize("format", FORMATS)
    def test_hold_for_x_that_is_not_contiguous(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format)
        for x in (torch.randn(40, 6).t(), torch.randn(6, 80)[:, ::2], torch.randn(40).expand(6, 40)):
            assert_answers(layer, linear, mask, x)

    @pytest.mark.parametrize("format", FORMATS)
    def test_hold_without_bias(self, format: str) -> None:
        linear, mask = layer_and_mask(bias=False)
        layer = SparseLinear.from_linear(linear, mask, format)
        assert layer.bias is None
        assert list(layer.state_dict()) == ["weight"]
        assert_answers(layer, linear, mask, torch.randn(3, 40))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("format", FORMATS)
    def test_ignore_nan_and_inf_in_masked_weights(self, format: str, dtype: torch.dtype) -> None:
        linear, mask = layer_and_mask()
        with torch.no_grad():
            linear.to(dtype).weight[~mask] = torch.tensor([torch.nan, torch.inf], dtype=dtype).repeat(
                int((~mask).sum()) // 2 + 1
            )[: int((~mask).sum())]
        layer = SparseLinear.from_linear(linear, mask, format)
        assert_answers(layer, linear, mask, torch.randn(3, 40, dtype=dtype))

    @pytest.mark.parametrize("format", ["element", "vector", "compact"])
    def test_of_a_dead_column_do_not_see_nan_there(self, format: str) -> None:
        linear, mask = layer_and_mask()
        mask[:, 3] = False
        x = torch.randn(4, 40)
        x[1, 3] = torch.nan
        layer = SparseLinear.from_linear(linear, mask, format)
        assert layer(x).isfinite().all()

    @pytest.mark.parametrize("format", ["element", "compact"])
    def test_have_the_fused_activation(self, format: str) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask(), format)
        x = torch.randn(3, 40)
        plain = layer(x)
        layer.activation = "relu"
        assert torch.equal(layer(x), plain.relu())
        assert (plain < 0).any()

    def test_refuse_x_of_another_width(self) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask())
        with pytest.raises(ValueError, match="last dimension must be 40"):
            layer(torch.randn(3, 39))

    def test_give_gradients_to_x_and_bias(self) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask)
        x = torch.randn(5, 40, requires_grad=True)
        layer(x).square().sum().backward()
        sparse = x.grad, layer.bias.grad.clone()
        x.grad = linear.bias.grad = None
        nn.functional.linear(x, torch.where(mask, linear.weight, 0), linear.bias).square().sum().backward()
        torch.testing.assert_close(sparse, (x.grad, linear.bias.grad))


class TestAttributes:
    def test_are_those_of_a_linear_layer(self) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear.eval(), mask)
        assert (layer.in_features, layer.out_features, layer.format) == (40, 24, "element")
        assert layer.bias is linear.bias
        assert not layer.training
        assert torch.equal(layer.weight, torch.where(mask, linear.weight, 0))
        assert layer.sparsity == pytest.approx(1 - mask.float().mean().item())
        assert f"sparsity={layer.sparsity:.1%}" in repr(layer)

    def test_nbytes_counts_every_packed_tensor(self) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask())
        assert layer.nbytes == sum(buffer.nbytes for buffer in layer.buffers())
        trainable = SparseLinear.from_linear(*layer_and_mask(), trainable=True)
        assert trainable.nbytes == trainable.values.nbytes + sum(b.nbytes for b in trainable.buffers())

    @pytest.mark.parametrize("format", FORMATS)
    def test_code_that_walks_over_tensors_gets_along(self, format: str) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask(), format)
        assert sum(buffer.nbytes + buffer.numel() for buffer in layer.buffers()) >= 0
        assert [name for name, _ in layer.named_parameters()] == ["bias"]
        layer.share_memory()
        assert layer.bias.is_shared()
        str(layer)

    def test_weight_cannot_be_set(self) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask())
        with pytest.raises((AttributeError, KeyError)):
            layer.weight = nn.Parameter(torch.zeros(24, 40))


class TestRefusals:
    @pytest.mark.parametrize(
        ("mask", "complaint"),
        [
            (torch.ones(40, 24, dtype=torch.bool), r"got \[40, 24\] of torch.bool on cpu"),
            (torch.ones(24, 40), r"must be .* of torch.bool .*, got \[24, 40\] of torch.float32"),
            (torch.ones(24, 40, dtype=torch.bool, device="meta"), "on cpu, got .* on meta"),
        ],
    )
    def test_of_masks_that_do_not_fit(self, mask: Tensor, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            SparseLinear.from_linear(nn.Linear(40, 24), mask)

    def test_of_an_unknown_format_offer_the_nearest(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'element'"):
            SparseLinear.from_linear(*layer_and_mask(), "elemnt")

    def test_of_unknown_options(self) -> None:
        with pytest.raises(ValueError, match="unknown option 'vector_rows'"):
            SparseLinear.from_linear(*layer_and_mask(), "element", vector_rows=4)

    def test_of_weights_that_are_no_floating_point_matrix(self) -> None:
        for weight in (torch.ones(4, 4, dtype=torch.int8), torch.ones(4)):
            with pytest.raises(ValueError, match=r"weight must be \[out, in\] in one of"):
                SparseLinear(weight)


class TestStateDict:
    @pytest.mark.parametrize("trainable", [False, True])
    def test_is_that_of_the_dense_layer(self, trainable: bool) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, trainable=trainable)
        state = layer.state_dict()
        assert list(state) == ["weight", "bias"]
        assert not any(tensor.requires_grad for tensor in state.values())
        dense = nn.Linear(40, 24)
        dense.load_state_dict(state)
        assert torch.equal(dense.weight, torch.where(mask, linear.weight, 0))

    @pytest.mark.parametrize(
        ("format", "trainable"),
        [*((format, False) for format in FORMATS), ("element", True), ("vector", True)],
    )
    def test_of_a_dense_layer_loads(self, format: str, trainable: bool) -> None:
        linear, mask = layer_and_mask(height=4)
        layer = SparseLinear.from_linear(linear, mask, format, trainable=trainable)
        names = [name for name, _ in layer.named_parameters()]
        other = nn.Linear(40, 24)
        with torch.no_grad():
            other.weight.mul_(mask)
        assert not any(layer.load_state_dict(other.state_dict()))
        assert_answers(layer, other, mask, torch.randn(3, 40))
        assert [name for name, _ in layer.named_parameters()] == names

    def test_with_weights_outside_the_mask_is_an_error(self) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask)
        with pytest.raises(RuntimeError, match=rf"weight: {int((~mask).sum())} nonzero weights .* outside"):
            layer.load_state_dict(nn.Linear(40, 24).state_dict())

    def test_with_a_weight_of_another_shape_is_an_error(self) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask())
        with pytest.raises(RuntimeError, match=r"weight: the checkpoint has \[24, 39\]"):
            layer.load_state_dict({"weight": torch.zeros(24, 39), "bias": torch.zeros(24)})

    def test_knows_missing_and_unexpected_keys(self) -> None:
        layer = nn.Sequential(SparseLinear.from_linear(*layer_and_mask(), trainable=True))
        keys = layer.load_state_dict({"0.values": torch.zeros(3)}, strict=False)
        assert sorted(keys.missing_keys) == ["0.bias", "0.weight"]
        assert keys.unexpected_keys == ["0.values"]

    def test_keeps_a_kept_weight_of_zero_in_the_mask(self) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask)
        layer.load_state_dict({"weight": torch.zeros(24, 40), "bias": torch.zeros(24)})
        layer.load_state_dict({"weight": mask.float(), "bias": torch.zeros(24)})
        assert torch.equal(layer.weight, mask.float())


class TestConversion:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("format", FORMATS)
    def test_to_a_dtype_repacks(self, format: str, dtype: torch.dtype) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format).to(dtype)
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert torch.equal(layer.weight, torch.where(mask, linear.weight, 0).to(dtype))
        assert_answers(layer, linear.to(dtype), mask, torch.randn(5, 40, dtype=dtype))
        assert layer.float().format == format
        assert_answers(layer, linear.float(), mask, torch.randn(5, 40))

    @pytest.mark.parametrize(
        ("dtype", "stored"),
        [
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.float16, torch.float32),
            (torch.float64, torch.float64),
        ],
        ids=str,
    )
    def test_stores_what_it_says(self, dtype: torch.dtype, stored: torch.dtype) -> None:
        linear, mask = layer_and_mask()
        assert SparseLinear.from_linear(linear.to(dtype), mask).values.dtype == stored
        layer = SparseLinear.from_linear(linear.float(), mask)
        for _ in range(2):  # the second time there is nothing to do
            assert layer.to(dtype).values.dtype == stored

    def test_of_float64_loses_no_digit(self) -> None:
        linear, mask = layer_and_mask()
        linear.double()
        layer = SparseLinear.from_linear(linear, mask)
        assert torch.equal(layer.weight, torch.where(mask, linear.weight, 0))

    def test_keeps_weights_that_become_zero_in_the_mask(self) -> None:
        linear, mask = layer_and_mask()
        with torch.no_grad():
            linear.weight.fill_(1e-12)
        layer = SparseLinear.from_linear(linear, mask).half().float()
        assert torch.equal(layer.packed.kept(), mask)

    def test_works_on_a_whole_model(self) -> None:
        linear, mask = layer_and_mask()
        model = nn.Sequential(SparseLinear.from_linear(linear, mask), nn.Linear(24, 8)).bfloat16()
        assert model(torch.randn(2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16

    def test_frees_the_packed_weight_before(self) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask(), "panel")
        for change in (layer.double, layer.float, layer.prepare_format("element")):
            layer(torch.randn(3, 40, dtype=layer.dtype))
            held = [weakref.ref(tensor) for tensor in (layer.packed, layer.values)]
            change()
            assert [each() for each in held] == [None, None]

    @pytest.mark.parametrize("format", FORMATS)
    def test_to_the_meta_device_and_no_further(self, format: str) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask(), format).to("meta")
        assert all(tensor.is_meta for tensor in (*layer.buffers(), *layer.parameters()))
        with pytest.raises(ValueError, match="lost its mask"):
            layer.to_empty(device="cpu")

    def test_to_empty_does_not_touch_the_index(self) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask())
        index = {name: buffer.clone() for name, buffer in layer.named_buffers() if name != "values"}
        layer.to_empty(device="cpu")
        assert all(torch.equal(getattr(layer, name), buffer) for name, buffer in index.items())

    @pytest.mark.gpu
    @pytest.mark.parametrize("format", FORMATS)
    def test_to_the_gpu_and_back(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format).cuda()
        x = torch.randn(5, 40)
        torch.testing.assert_close(layer(x.cuda()).cpu().double(), masked(linear.cpu(), mask, x))
        assert layer.cpu().format == format
        assert_answers(layer, linear.cpu(), mask, x)


class TestCopies:
    @pytest.mark.parametrize("format", FORMATS)
    def test_by_deepcopy_pickle_and_save_are_equal_and_independent(self, format: str) -> None:
        linear, mask = layer_and_mask()
        layer = SparseLinear.from_linear(linear, mask, format)
        x = torch.randn(3, 40)
        expected = layer(x).detach()
        for twin in copies_of(layer):
            assert torch.equal(twin(x), expected)
            with torch.no_grad():
                twin.bias.zero_()
            assert torch.equal(layer(x), expected)

    @pytest.mark.parametrize(
        ("format", "method"), [("element", "fork"), ("dense", "fork"), ("dense", "spawn")]
    )
    def test_in_dataloader_workers_answer_alike(self, format: str, method: str) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask(), format).requires_grad_(False)
        xs = list(torch.randn(4, 3, 40))
        expected = [layer(x) for x in xs]
        loader: Any = torch.utils.data.DataLoader(
            xs,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=layer,
            num_workers=1,
            multiprocessing_context=method,
        )
        assert all(torch.equal(*pair) for pair in zip(loader, expected, strict=True))

    @pytest.mark.parametrize("format", FORMATS)
    def test_threads_share_a_layer(self, format: str) -> None:
        layer = SparseLinear.from_linear(*layer_and_mask(), format).requires_grad_(False)
        xs = torch.randn(8, 16, 40)
        expected = [layer(x) for x in xs]
        wrong = []

        def work(index: int) -> None:
            for _ in range(20):
                if not torch.equal(layer(xs[index]), expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.parametrize("trainable", [False, True])
def test_a_replica_of_data_parallel_answers_alike(trainable: bool) -> None:
    layer, x = SparseLinear.from_linear(*layer_and_mask(), trainable=trainable), torch.randn(3, 40)
    assert torch.equal(replica(layer)(x), layer(x))
