"""The transformers plug-in ("quantizer") that saves and loads sparse and compacted models.

On disk a sparse matrix is a mask and its kept weights, independent of device and packed format
(``sparsebert.nn.checkpoint_form``); config.json lists these matrices (``sparsebert.hf.config``). Loading
replaces each by a ``PlaceholderLinear``, lets transformers fill it, and packs it for the device at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from sparsebert.bert import canonical_key, full_name, is_adapted, is_bert_like, resolve, structure
from sparsebert.compaction.manifest import description_of
from sparsebert.compaction.rebuild import rebuild, require_rectangles
from sparsebert.conv1d import as_linear, is_conv1d
from sparsebert.cost.cpu_cost import cpu_model
from sparsebert.cost.default_tokens import tokens_after_move
from sparsebert.hf.attach_quantizer import METHOD, attach_quantizer_
from sparsebert.hf.config import FORMAT_VERSION, SparseConfig, StoredLayer
from sparsebert.hf.embeddings import with_embeddings_in
from sparsebert.hf.placeholder_linear import PlaceholderLinear
from sparsebert.hf.placement import (
    is_saved_class,
    layer_paths,
    renamer,
    require_saved_layer,
    without_conversions,
)
from sparsebert.hf.push import PushToHub
from sparsebert.hf.save import SavePretrained, is_saving, parts
from sparsebert.hf.verify_files import (
    Expected,
    of_layer,
    of_module,
    read_bits,
    read_headers,
    require_dense_tensors,
    require_tensors,
)
from sparsebert.nn.checkpoint_form import BITS, VALUES
from sparsebert.nn.sparse_linear import SparseLinear, as_stored
from sparsebert.planning.after_compaction import CompactedTargets
from sparsebert.planning.engine_choice import decide_encoder, why_not_fusible
from sparsebert.planning.install import install_, settle_
from sparsebert.planning.layer_planner import describe_machine, plan_layers
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.planner import (
    fused_activations,
    plans_for_engines,
    shared_inputs_of,
)
from sparsebert.planning.target_layers import TargetLayer, outline
from sparsebert.sparsify import densify_
from sparsebert.tickets.provenance import masks_digest
from sparsebert_kernels import __version__
from sparsebert_kernels.dtype_names import short_name

# The end of ``SparseConfig.machine`` if that machine was too busy to time every layer.
FUSING = ("fuse_qkv", "fuse_activation", "fuse", "way")
BUSY_NOTE = "; too busy to time every layer"


class SparseQuantizer(HfQuantizer):
    """Save and load models with ``SparseLinear`` layers; ``attach_quantizer_`` attaches it to a model.

    Loading raises a one-line ValueError if the folder has a newer version, does not fit the class or has a
    truncated file, or if its masks do not match config.json.
    """

    quantization_config: SparseConfig

    def __init__(self, quantization_config: SparseConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        if not self.pre_quantized:
            raise ValueError(
                "cannot sparsify a dense checkpoint while loading it; load it, then call "
                "sparsebert.sparsify_(model, ticket)"
            )

    def is_serializable(self, *args: Any, **options: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def push_to_hub_of(self, model: Any) -> PushToHub:
        """Return the ``push_to_hub`` to attach to the model."""
        return PushToHub(model)

    def save_pretrained_of(self, model: Any) -> SavePretrained:
        """Return the ``save_pretrained`` to attach to the model."""
        return SavePretrained(model)

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file of the weights to transformers, which looks for it after this call."""
        if self.quantization_config.weights is not None:
            config.transformers_weights = self.quantization_config.weights
        return config

    # transformers 5.17 lacks the other method.
    update_tp_plan = update_attn_implementation

    def update_weight_conversions(self, weight_conversions: list[Any], *args: Any) -> list[Any]:
        """Return the conversions between the tensors on disk and those of the model."""
        if self.quantization_config.version < 3:
            return weight_conversions
        return without_conversions(weight_conversions, same_class=self._same_class)

    def get_state_dict_and_metadata(
        self, model: Any, *args: Any, **options: Any
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors to save, and describe them in the config that is saved next.

        Raises:
            ValueError: The method of a class is called instead of the model's ``save_pretrained``, or the
                model has adapters, whose names a saved model could not be loaded with.
        """
        if not is_saving():
            raise ValueError(
                "call model.save_pretrained(folder), not the method of a class, which would write files that "
                "transformers takes for dense weights; a model that an earlier version has pickled needs "
                "sparsebert.hf.attach_quantizer.attach_quantizer_(model) first"
            )
        # transformers itself saves the adapters alone if they are its own (`model.add_adapter`).
        if not getattr(model, "_hf_peft_config_loaded", False):
            for name, _ in model.named_modules():
                if is_adapted(name):
                    raise ValueError(
                        f"{name} has an adapter: call merge_and_unload() or unload() before saving, "
                        "or save the PeftModel, which saves the adapters alone"
                    )
        with as_stored():
            state = model.state_dict()
        self.quantization_config = described(model, state, self.quantization_config)
        if self.quantization_config.embeddings is not None:
            state = with_embeddings_in(self.quantization_config.embeddings, model, state)
        model.config.quantization_config = self.quantization_config
        return state, {}

    def validate_environment(self, *args: Any, device_map: Any = None, **options: Any) -> None:
        places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
        if "disk" in places:
            raise ValueError("device_map: a sparse model cannot be offloaded to disk; use cpu")

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Iterable[str] | None = None, **options: Any
    ) -> None:
        self._same_class = is_saved_class(model)
        rebuild(model, self.quantization_config.compaction or {})
        layers = self.quantization_config.layers
        self._paths = layer_paths(model, layers)
        absent = layers.keys() - self._paths.keys()
        for key in absent:
            require_saved_layer(model.config, key)
        for key, path in self._paths.items():
            _require_fitting(model, path, key, layers[key])
        for key, path in self._paths.items():
            parent, _, child = path.rpartition(".")
            dense = model.get_submodule(path)
            placeholder = PlaceholderLinear(layers[key], dense.weight.dtype)
            placeholder.conv1d = type(dense) if is_conv1d(dense) else None
            setattr(model.get_submodule(parent), child, placeholder)
        self._absent_bits: dict[str, Tensor] = {}
        if checkpoint_files is not None:
            present = read_headers(checkpoint_files, renamer(model))
            require_tensors(present, self._expected(model))
            require_dense_tensors(present, model, self._paths.values())
            if not present.keys() & model.state_dict().keys():
                raise ValueError(f"the folder holds no tensor of a {type(model).__name__}")
            self._absent_bits = read_bits(checkpoint_files, absent)

    def _expected(self, model: nn.Module) -> dict[str, Expected]:
        """Return the tensors that files must hold: sparse layers, and all matrices of a BERT-like encoder."""
        layers = self.quantization_config.layers
        expected: dict[str, Expected] = {}
        for key in structure(model).linears if is_bert_like(model) else ():
            if key not in layers:
                expected |= of_module(full_name(model, key), key, resolve(model, key))
        for key, path in self._paths.items():
            expected |= of_layer(path, key, layers[key])
        return expected

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        config = self.quantization_config
        require_rectangles(model)
        layers = {key: config.layers[key] for key in self._paths}
        selected = [_selected(model, key, path, layers[key].removed) for key, path in self._paths.items()]
        self._require_masks(model)
        outlines = [_outline(layer) for layer in selected]
        plans = self._plans(model, outlines)
        install_(
            model,
            CompactedTargets(tuple(selected), None),
            plans.layers,
            trainable=config.trainable,
            fuse_qkv=config.fuse_qkv,
            fuse_activation=config.fuse_activation,
        )
        # The weights are not quantised: allow .half(), .float() and training.
        model.is_quantized = False
        # Saved dense, the model is to have the names of its checkpoints again.
        vars(model).pop("_weight_conversions", None)
        vars(model.config).pop("transformers_weights", None)
        for part in parts(model.config):
            for name in ("quantization_config", "transformers_weights"):
                vars(part).pop(name, None)
        self._fuse_(model, plans, outlines)
        fields = ("format", "tokens", "origin", "sparsity", "tolerance", *FUSING)
        # Trained further, the embeddings must not be rounded again: the model is saved in its own dtype.
        attach_quantizer_(model, embeddings=None, **{name: getattr(config, name) for name in fields})
        return model

    def _require_masks(self, model: Any) -> None:
        """Raise ValueError unless all masks, also of layers that the model lacks, match config.json."""
        config = self.quantization_config
        bits = self._absent_bits | {
            key: model.get_submodule(path).weight_bits for key, path in self._paths.items()
        }
        masks = {key: (layer.shape, bits[key]) for key, layer in config.layers.items() if key in bits}
        if config.masks != stored_digest(masks, config.version):
            raise ValueError("the masks do not match config.json; get a new copy of the folder")

    def _is_same_machine(self, outlines: Sequence[TargetLayer]) -> bool:
        """Whether the folder was saved on a machine like this one, for layers of the same dtype."""
        saved = self.quantization_config.machine.removesuffix(BUSY_NOTE)
        return all(machine(layer.linear.weight) == saved for layer in outlines)

    def _plans(self, model: nn.Module, outlines: Sequence[TargetLayer]) -> Plan:
        """Return the saved plans on a machine like the one that saved the folder; else plan anew.

        Layers that the machine was too busy to time are planned anew as well. The cost model decides, so that
        loading stays quick; ``sparsebert.replan_`` times the formats.
        """
        config = self.quantization_config
        same_machine = self._is_same_machine(outlines)
        busy = same_machine and config.machine.endswith(BUSY_NOTE)
        plans = {
            layer.key: _as_saved(config, layer)
            for layer in outlines
            if same_machine and not (busy and config.layers[layer.key].measured_us is None)
        }
        gpu = any(layer.linear.weight.device.type == "cuda" for layer in outlines)
        planned = plan_layers(
            [layer for layer in outlines if layer.key not in plans],
            tokens=tokens_after_move(config.tokens, gpu),
            format=config.format,
            measure=False,
            quick=True,
            trainable=config.trainable,
            shared_inputs=shared_inputs_of(model) if config.fuse_qkv else (),
            tolerance=config.tolerance,
            activations=fused_activations(model) if gpu and config.fuse_activation else {},
        )
        plans |= {entry.key: replace(entry, busy=busy) for entry in planned.layers}
        return Plan(tuple(plans[layer.key] for layer in outlines), planned.machine)

    def _fuse_(self, model: nn.Module, plans: Plan, outlines: Sequence[TargetLayer]) -> None:
        """Let the encoder run in the saved way on such a machine, else as the cost model predicts.

        A machine that cannot fuse runs the layers one by one even if ``fuse=True`` was demanded where the
        folder was made, and the plan says why.
        """
        config = self.quantization_config
        saved = config.way if self._is_same_machine(outlines) else ""
        decision = decide_encoder(
            model,
            plans.layers,
            tokens=config.tokens,
            fuse=None if config.fuse and why_not_fusible(model) else config.fuse,
            trainable=config.trainable,
            quick=True,
            saved=saved,
            tolerance=config.tolerance,
            others=plans_for_engines(
                plans, outlines, model, format=config.format, measure=True, tolerance=config.tolerance
            ),
        )
        if decision:
            settle_(model, decision, timed=False, fuse_qkv=config.fuse_qkv)

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return densify_(model)


def described(model: nn.Module, state: Mapping[str, Tensor], config: SparseConfig) -> SparseConfig:
    """Return the config to save: ``config``, updated from the model and its tensors to save."""
    # A layer that stands in several places is stored once for each: loading builds a layer for each.
    modules = model.named_modules(remove_duplicate=False)
    layers = {name: each for name, each in modules if isinstance(each, SparseLinear)}
    keys = {name: canonical_key(name) if is_bert_like(model) else name for name in layers}
    masks = {
        keys[name]: ((layer.out_features, layer.in_features), state[f"{name}.{BITS}"])
        for name, layer in layers.items()
    }
    machines = [machine(layer.values, layer.dtype) for layer in layers.values()]
    busy = any(layer.plan is not None and layer.plan.busy for layer in layers.values())
    return replace(
        config,
        version=FORMAT_VERSION,
        layers={
            keys[name]: _stored_layer(layer, len(state[f"{name}.{VALUES}"])) for name, layer in layers.items()
        },
        masks=stored_digest(masks),
        trainable=any(layer.trainable for layer in layers.values()),
        machine=machines[0] + BUSY_NOTE * busy if machines else "",
        compaction=description_of(model) or None,
    )


def stored_digest(masks: Mapping[str, tuple[tuple[int, int], Tensor]], version: int = FORMAT_VERSION) -> str:
    """Return the digest that a folder of this format version records of its masks.

    Args:
        masks: Key -> shape [out, in] and packed bits (uint8).
        version: Version of the folder's format.
    """
    if version > 1:
        return masks_digest((key, *masks[key]) for key in sorted(masks))
    digest = hashlib.sha256()
    for key in sorted(masks):
        digest.update(f"{key}\n".encode())
        digest.update(masks[key][1].cpu().numpy().data)
    return f"sha256:{digest.hexdigest()}"


def machine(values: Tensor, dtype: torch.dtype | None = None) -> str:
    """Describe what formats are chosen for: GPU, or CPU with instruction set and threads; dtype; versions."""
    kind = values.device.type
    if kind == "cuda":
        name = torch.cuda.get_device_name(values.device)
    else:
        name = f"{cpu_model()}, {describe_machine()}"
    dtype_name = str(dtype or values.dtype).removeprefix("torch.")
    return f"{kind}, {name}, {dtype_name}, sparsebert {__version__}, torch {torch.__version__}"


def _stored_layer(layer: SparseLinear, kept: int) -> StoredLayer:
    format, plan = layer.recipe[0], layer.plan
    planned = plan is not None and plan.format == format
    timed = planned and not plan.busy  # do not publish times of a busy machine
    return StoredLayer(
        shape=(layer.out_features, layer.in_features),
        kept=kept,
        bias=layer.bias is not None,
        format=format,
        block=plan.block if planned else None,
        measured_us=plan.measured_us if timed else None,
        dense_us=plan.dense_us if timed else None,
        removed=plan.removal_note if plan is not None else "",
        precision=layer.precision,
    )


def _require_fitting(model: nn.Module, path: str, key: str, layer: StoredLayer) -> None:
    """Raise ValueError unless the model's module of this path can hold the layer of this key."""
    linear = model.get_submodule(path)
    if is_conv1d(linear):
        linear = as_linear(linear)
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"the folder does not fit {type(model).__name__}: its {key} is a linear layer, that of the class "
            f"is a {type(linear).__name__}"
        )
    shape = linear.out_features, linear.in_features
    if shape != layer.shape or (linear.bias is not None) != layer.bias:
        raise ValueError(
            f"the folder does not fit {type(model).__name__}: its {key} is {list(layer.shape)} "
            f"{_bias(layer.bias)}, that of the class with this configuration is {list(shape)} "
            f"{_bias(linear.bias is not None)}"
        )


def _bias(present: bool) -> str:
    return "with a bias" if present else "without a bias"


def _selected(model: nn.Module, key: str, path: str, removed: str) -> TargetLayer:
    stored: Any = model.get_submodule(path)
    if stored.weight_values.is_meta:
        raise ValueError(f"{key} was offloaded, but sparse layers must be on their device; change device_map")
    try:
        mask = stored.mask().to(stored.weight_values.device)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return TargetLayer(key, path, stored, mask, removal_note=removed, conv1d=stored.conv1d)


def _outline(layer: TargetLayer) -> TargetLayer:
    """Return the target layer of a ``PlaceholderLinear`` without memory for its weight."""
    stored: Any = layer.linear
    shape = stored.out_features, stored.in_features
    return replace(layer, linear=outline(shape, stored.weight_values, stored.bias))


def _as_saved(config: SparseConfig, layer: TargetLayer) -> LayerPlan:
    entry = config.layers[layer.key]
    dense_nbytes = layer.linear.weight.nbytes
    return LayerPlan(
        key=layer.key,
        shape=entry.shape,
        sparsity=1 - entry.kept / layer.mask.numel(),
        format=entry.format,
        predicted_us=None,
        measured_us=entry.measured_us,
        dense_us=entry.dense_us,
        nbytes=dense_nbytes,
        dense_nbytes=dense_nbytes,
        reason="as saved on such a machine",
        tokens=config.tokens,
        block=entry.block,
        removal_note=entry.removed,
        decided_by="saved plan",
        dtype=short_name(layer.linear.weight.dtype),
        precision=entry.precision,
        tolerance=config.tolerance,
    )


# transformers accepts one registration per name; no other library registers this one.
register_quantization_config(METHOD)(SparseConfig)
register_quantizer(METHOD)(SparseQuantizer)
