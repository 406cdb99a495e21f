"""The planner: the format that each layer gets, predicted from its mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import Ticket, plan
from sparsebert.planning.layer_decision import LEAST_SPEEDUP
from sparsebert.planning.plan import LayerPlan
from sparsebert_kernels import formats
from tests.ops.backends import using
from tests.planning.masks import dead_rows, model_with, needs_native, random_mask


@pytest.fixture
def on_tiles() -> Iterator[None]:
    """The built-in costs of CPUs with AMX, which other CPUs know too."""
    try:
        with using("amx_emulated"):
            yield
    except ValueError:
        pytest.skip("the native library has no emulated tiles")


class TestChoice:
    """With the built-in costs, which depend on the arguments and the instruction set alone."""

    @needs_native
    @pytest.mark.parametrize(
        ("mask", "format"),
        [
            (lambda: random_mask(0.1), "element"),
            (lambda: random_mask(0.1, height=4), "vector 4x1"),
            (lambda: random_mask(0.1, height=16), "vector 8x1"),
            (lambda: random_mask(0.1, height=2), "vector 2x1"),
            (lambda: dead_rows(0.3), "compact"),
            (lambda: random_mask(0.97), "dense"),
            (lambda: random_mask(1.0), "dense"),
        ],
    )
    def test_follows_the_structure_of_the_mask(self, mask: Callable[[], Tensor], format: str) -> None:
        (layer,) = plan(*model_with(mask()), measure=False).layers
        assert layer.label == format

    @pytest.mark.parametrize(
        ("density", "dtype"),
        [
            *((density, torch.float32) for density in (0.3, 0.6, 0.8, 0.99)),
            *((density, torch.bfloat16) for density in (0.3, 0.7, 0.9)),
        ],
    )
    def test_never_takes_more_bytes_than_dense(self, density: float, dtype: torch.dtype) -> None:
        model, ticket = model_with(random_mask(density))
        (layer,) = plan(model.to(dtype), ticket, measure=False).layers
        assert layer.nbytes <= layer.dense_nbytes

    @pytest.mark.usefixtures("on_tiles")
    @pytest.mark.parametrize(("width", "removed"), [(2, False), (32, True)])
    def test_a_removal_that_cuts_row_panels_up_is_left_out(self, width: int, removed: bool) -> None:
        """Neurons are removed where a group of columns is empty: two in the middle of a panel of 32 rows."""
        transformers = pytest.importorskip("transformers")
        model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, vocab_size=9))
        up = random_mask(0.1, 3072, 384, height=32).repeat_interleave(2, 1)
        down = random_mask(0.1, 768, 3072 // width, height=32).repeat_interleave(width, 1)
        layer = "encoder.layer.0."
        ticket = Ticket({f"{layer}intermediate.dense": up, f"{layer}output.dense": down})
        made = plan(model, ticket, measure=False, tolerance="bf16")
        assert bool(made.layers[0].removal_note) == removed
        assert ("the blocks would be cut up" in made.removal_note) == (not removed)
        assert plan(model, ticket, measure=False, tolerance="bf16", compact=True).layers[0].removal_note

    @pytest.mark.usefixtures("without_native")
    def test_without_the_native_library_still_trains(self) -> None:
        (layer,) = plan(*model_with(random_mask(0.1, 48, 40)), trainable=True, measure=False).layers
        assert (layer.format, layer.predicted_us) == ("element", None)
        assert layer.reason == "no cost figures: the format with the fewest stored weights"

    @pytest.mark.parametrize(("density", "format"), [(0.05, "csr"), (0.5, "dense")])
    @pytest.mark.usefixtures("without_native")
    def test_without_the_native_library_is_csr_or_dense(self, density: float, format: str) -> None:
        (layer,) = plan(*model_with(random_mask(density)), measure=False).layers
        assert layer.format == format

    def test_keeps_a_layer_dense_that_is_predicted_to_gain_next_to_nothing(self) -> None:
        """As after a timing."""
        reasons = set()
        for density in torch.linspace(0.3, 0.7, 21):
            (layer,) = plan(*model_with(random_mask(float(density))), measure=False).layers
            reasons.add(re.sub(r"[\d.]+x", "Nx", layer.reason))
            assert layer.decided_by == "cost model"
            if layer.format != "dense":
                assert layer.dense_us >= LEAST_SPEEDUP * layer.predicted_us
        assert reasons >= {"predicted Nx dense", "element predicted Nx dense, less than Nx"}

    def test_is_the_same_every_time(self) -> None:
        arguments = model_with(random_mask(0.1), random_mask(0.4), dead_rows(0.2))
        assert plan(*arguments, measure=False) == plan(*arguments, measure=False)

    def test_depends_on_tokens_and_dtype(self) -> None:
        model, ticket = model_with(random_mask(0.1))
        few, many = (plan(model, ticket, tokens=tokens, measure=False).layers[0] for tokens in (32, 1024))
        assert few.predicted_us < many.predicted_us
        half = plan(model.bfloat16(), ticket, tokens=1024, measure=False).layers[0]
        assert half.dense_us < many.dense_us
        assert half.nbytes < many.nbytes

    def test_leaves_the_model_alone(self) -> None:
        model, ticket = model_with(random_mask(0.1))
        plan(model, ticket, measure=False)
        assert type(model[0]) is nn.Linear

    @pytest.mark.parametrize(("height", "formats"), [(1, {"element"}), (2, {"element", "vector 2x1"})])
    def test_for_training_is_a_format_that_can_be_trained(self, height: int, formats: set[str]) -> None:
        mask = random_mask(0.3, 48, 40, height)
        for density in (mask, torch.ones_like(mask)):
            (layer,) = plan(*model_with(density), measure=False, trainable=True).layers
            assert layer.format in ("element", "vector")
        (layer,) = plan(*model_with(mask), measure=False, trainable=True).layers
        assert layer.label in formats

    def test_reads_zeros_where_there_is_no_ticket(self) -> None:
        model, ticket = model_with(random_mask(0.1), random_mask(1.0))
        ticket.apply_(model)
        (layer,) = plan(model, measure=False).layers
        assert layer.key == "0"
        assert layer.sparsity == ticket.layer_sparsity["0"]

    def test_of_fp64_and_fp16_says_how_they_are_computed(self) -> None:
        model, ticket = model_with(random_mask(0.1))
        (layer,) = plan(model.double(), ticket, measure=False).layers
        assert (layer.format, layer.predicted_us) == ("dense", None)
        assert layer.sparsity == ticket.layer_sparsity["0"]
        assert layer.reason.startswith("float64 stays a plain matrix")
        (layer,) = plan(model.half(), ticket, measure=False).layers
        assert layer.reason.endswith("computed in float32")
        (layer,) = plan(model, ticket, format="panel").layers
        assert layer.reason == "requested; computed in float32"

    def test_may_be_asked_for(self, timed: Callable[..., list[int]]) -> None:
        count = timed(0.1)
        for format in {*formats.FORMATS} - {"row_panel"}:
            (layer,) = plan(*model_with(random_mask(0.5, 96, 80)), format=format).layers
            assert (layer.format, layer.reason, layer.decided_by) == (format, "requested", "user")
        assert not count

    def test_row_panels_may_be_asked_for_where_bf16_is_tolerated(self) -> None:
        model, ticket = model_with(random_mask(0.5, 96, 80))
        with pytest.raises(
            ValueError, match="'row_panel' rounds to bf16: allow it with the tolerance 'bf16'"
        ):
            plan(model, ticket, format="row_panel")
        (layer,) = plan(model, ticket, format="row_panel", tolerance="bf16").layers
        assert (layer.format, layer.precision, layer.decided_by) == ("row_panel", "bf16", "user")
        (layer,) = plan(model.bfloat16(), ticket, format="row_panel").layers
        assert (layer.format, layer.precision, layer.dtype) == ("row_panel", "", "bf16")

    def test_refuses_unknown_formats_and_tokens(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'vector'"):
            plan(*model_with(random_mask(0.1)), format="vektor")
        with pytest.raises(ValueError, match="tokens must be a positive integer, got 0"):
            plan(*model_with(random_mask(0.1)), tokens=0)
        with pytest.raises(ValueError, match="measure must be True or False, got 'no'"):
            plan(*model_with(random_mask(0.1)), measure="no")  # type: ignore[arg-type]


class TestForAGpuThatIsNotHere:
    def made(self, mask: Tensor, tokens: int = 4096, **options: Any) -> LayerPlan:
        model, ticket = model_with(mask)
        (layer,) = plan(model.bfloat16(), ticket, tokens=tokens, device="h200", **options).layers
        return layer

    def test_blocks_become_panels_of_their_size(self) -> None:
        mask = random_mask(0.1, 3072, 768 // 64, height=64).repeat_interleave(64, 1)
        layer = self.made(mask)
        assert layer.label in ("panel 64x64", "panel 64x32", "panel 64x16", "panel 64x8", "panel 128x64")
        assert layer.predicted_us is not None
        assert layer.dense_us is not None
        assert layer.reason == f"predicted {layer.dense_us / layer.predicted_us:.1f}x dense"

    def test_elements_stay_dense_and_the_plan_says_what_blocks_would_bring(self) -> None:
        layer = self.made(random_mask(0.1, 3072))
        assert layer.format == "dense"
        assert re.fullmatch(
            r"no format is predicted to be faster; as \d+x\d+ blocks up to [1234]\.\dx predicted",
            layer.reason,
        )

    def test_layers_that_read_one_input_agree_on_a_block_size(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(num_hidden_layers=1, vocab_size=9)
        model = transformers.BertModel(config).bfloat16()
        masks = {
            f"encoder.layer.0.attention.self.{name}": random_mask(0.1, 768, 768 // width, height)
            .repeat_interleave(width, 1)
            for name, height, width in (("query", 64, 64), ("key", 128, 64), ("value", 64, 8))
        }  # fmt: skip
        alone = [self.made(mask).block for mask in masks.values()]
        together = plan(model, Ticket(masks), tokens=4096, device="h200").layers
        assert len(set(alone)) > 1
        assert len({layer.block for layer in together}) == 1

    def test_an_up_projection_is_compared_with_a_dense_one_and_a_kernel_for_its_activation(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(num_hidden_layers=1, vocab_size=9)
        model = transformers.BertModel(config).bfloat16()
        mask = random_mask(0.1, 3072, 768 // 64, height=64).repeat_interleave(64, 1)
        key = "encoder.layer.0.intermediate.dense"
        fused, apart = (
            plan(model, Ticket({key: mask}), device="h200", **options).layers[0]
            for options in ({}, {"trainable": True})  # whose activation stays a module of its own
        )
        assert fused.dense_us is not None
        assert apart.dense_us is not None
        assert fused.dense_us > 1.3 * apart.dense_us
        assert re.fullmatch(r"predicted [234]\.\dx dense with gelu", fused.reason)
        assert "gelu" not in apart.reason

    @pytest.mark.parametrize(("width", "removed"), [(8, False), (64, True)])
    def test_a_removal_that_cuts_blocks_up_is_left_out(self, width: int, removed: bool) -> None:
        """Neurons are removed where a group of columns is empty: 8 in the middle of a block of 64 rows."""
        transformers = pytest.importorskip("transformers")
        model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, vocab_size=9)).bfloat16()
        up = random_mask(0.1, 3072, 768 // width, height=64).repeat_interleave(width, 1)
        down = random_mask(0.1, 768, 3072 // width, height=64).repeat_interleave(width, 1)
        layer = "encoder.layer.0."
        ticket = Ticket({f"{layer}intermediate.dense": up, f"{layer}output.dense": down})
        made = plan(model, ticket, tokens=4096, device="h200")
        assert made.layers[0].block is not None
        assert made.layers[0].block[0] == 64
        assert bool(made.layers[0].removal_note) == removed
        assert ("the blocks would be cut up" in made.removal_note) == (not removed)
        asked = plan(model, ticket, tokens=4096, device="h200", compact=True)
        assert asked.layers[0].removal_note

    def test_says_what_its_figures_are(self) -> None:
        made = plan(*model_with(random_mask(0.1)), device="h200")
        assert made.machine.startswith("float32 on NVIDIA H200, built-in figures; modelled, not measured")

    def test_formats_without_gpu_kernels_stay_dense(self) -> None:
        layer = self.made(random_mask(0.1), format="element")
        assert (layer.format, layer.reason) == ("dense", "format 'element' has no GPU kernels")

    def test_unknown_gpus_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no figures for device 'h300'"):
            plan(*model_with(random_mask(0.1)), device="h300")
