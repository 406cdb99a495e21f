"""Every class in transformers' registry as a small random model, for tests that sweep over them.

The registry is the mapping of ``AutoModel``. A class is built from its default configuration with widths,
depths and vocabularies made small; where that does not build, only depth and vocabulary are made small.
``SKIPPED`` names the classes that are left out, each with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

# The version whose registry ``SKIPPED`` and ``SWEPT`` describe.
VERSION = "5.23.0"

# Larger models take seconds, and hundreds of them are built.
MOST_WEIGHTS = 45_000_000

_VOCABULARY = {"vocab_size": 160, "pad_token_id": 0, "entity_vocab_size": 20, "num_labels": 2}
_DEPTH = {
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_blocks": 2,
    "num_self_attends_per_block": 2,
    "depth": 2,
}
_WIDTH = {
    "hidden_size": 64,
    "d_model": 64,
    "d_latents": 64,
    "n_embd": 64,
    "emb_dim": 64,
    "embed_dim": 48,
    "dim": 64,
    "embedding_size": 64,
    "entity_emb_size": 32,
    "projection_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "head_dim": 16,
    "d_head": 16,
    "d_kv": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "ffn_dim": 96,
    "hidden_dim": 96,
    "d_inner": 96,
    "d_ff": 96,
    "n_inner": 96,
    "mlp_dim": 96,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
}
_STEPS: tuple[Mapping[str, Any], ...] = (
    _VOCABULARY | _DEPTH | _WIDTH,
    _VOCABULARY | _DEPTH | {name: _WIDTH[name] for name in _WIDTH if "head" not in name},
    _VOCABULARY | _DEPTH,
    _DEPTH,
    {},
)
# What a class needs besides, because its default is no number or no small one.
_PARTICULAR: dict[str, dict[str, Any]] = {
    "AutoformerModel": {"prediction_length": 4},
    "EsmModel": {"vocab_size": 33},
    "FunnelBaseModel": {"block_sizes": [1, 1]},
    "FunnelModel": {"block_sizes": [1, 1]},
    "GPTNeoModel": {"attention_types": [[["global", "local"], 1]]},
    "InformerModel": {"prediction_length": 4},
    "Mamba2Model": {"num_heads": 8},
    "NemotronModel": {"head_dim": 16, "num_key_value_heads": 4},
    "TimeSeriesTransformerModel": {"prediction_length": 4},
}
# Classes that are left out, by reason.
SKIPPED = {
    name: reason
    for reason, names in {
        "its default configuration does not build": (
            "ChameleonModel CohereCompassModel CohereCompassTextModel DFineModel DbrxModel "
            "DeepseekOcr2Model DiffusionGemmaModel Dots1Model Emu3Model FunAsrNanoModel "
            "Granite4VisionModel HunYuanDenseV1Model HunYuanMoEV1Model HunYuanVLModel "
            "HunYuanVLTextModel Lfm2MoeModel MinistralModel MoonshineStreamingModel "
            "MusicgenMelodyModel MusicgenModel PPOCRV6MediumDetModel T5Gemma2Encoder"
        ),
        "needs detectron2": ("LayoutLMv2Model"),
        "needs natten": ("DinatModel"),
        "needs timm": (
            "ConditionalDetrModel DabDetrModel DeformableDetrModel DetrModel EdgeTamModel "
            "EdgeTamVisionModel FastVlmModel Gemma3nModel OmDetTurboForObjectDetection "
            "PeAudioVideoEncoder PeAudioVideoModel PeVideoEncoder PeVideoModel PerceptionLMModel "
            "TableTransformerModel TimmBackbone TimmWrapperModel"
        ),
        "needs torchaudio": ("HiggsAudioV2TokenizerModel"),
        "no nn.Linear": (
            "BitModel EncodecModel FalconModel GlmImageVQVAE HGNetV2Backbone "
            "MobileNetV1Model MobileNetV2Model MobileViTV2Model PPOCRV5MobileRecModel "
            "PPOCRV5ServerRecModel PPOCRV6SmallDetModel PPOCRV6SmallRecModel PPOCRV6TinyRecModel "
            "PoolFormerModel RegNetModel ResNetModel TextNetModel UVDocModel UnivNetModel"
        ),
        "no small configuration": (
            "AlignModel BltModel CsmForConditionalGeneration DacModel Dots3NoteModel "
            "EfficientNetModel Ernie4_5_VLMoeModel Florence2Model Gemma3nTextModel Gemma4Model "
            "Gemma4TextModel Glm5NextModel Glm5NextVisionModel GraniteDoclingModel Inkling2Model "
            "JanusModel Kosmos2Model KyutaiSpeechToTextModel LongcatFlashModel Molmo2Model "
            "MuseSparkAudioModel MuseSparkModel Nemotron3_5TranscribeAudioModel "
            "Nemotron3_5TranscribeModel Qwen4ExpModel Qwen4ExpTextModel SeamlessM4TModel "
            "SeamlessM4Tv2Model VibeVoiceAcousticTokenizerDecoderModel "
            "VibeVoiceAcousticTokenizerEncoderModel VibeVoiceAcousticTokenizerModel VibeVoiceAsrModel "
            "VibeVoiceForConditionalGeneration XcodecModel Zamba2Model ZambaModel"
        ),
        "not a public name": ("VoxtralRealtimeTextModel"),
    }.items()
    for name in names.split()
}
# The number of the others.
SWEPT = 502


def classes() -> dict[str, str]:
    """Return the classes in the mapping of ``AutoModel``, by name, with the type of their configuration."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names: dict[str, str] = {}
    for model_type, entry in MODEL_MAPPING_NAMES.items():
        for name in [entry] if isinstance(entry, str) else entry:
            names.setdefault(name, model_type)
    return dict(sorted(names.items()))


def build(name: str, head: str | None = None) -> Any:
    """Return a small model of this class, or of the class ``head`` of its family, in eval mode.

    Its weights are random. Skips the test for a class in ``SKIPPED`` and, with another version of
    transformers than ``VERSION``, for one that does not build.
    """
    if name in SKIPPED:
        pytest.skip(f"{name}: {SKIPPED[name]}")
    try:
        return try_to_build(name, head)
    except ValueError as error:
        if transformers.__version__ == VERSION:
            raise
        pytest.skip(f"{name}: {error}")


def try_to_build(name: str, head: str | None = None) -> Any:
    """Return the model as ``build`` does; raise ValueError with the reasons if no configuration builds."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    reasons = []
    for sizes in _STEPS:
        try:
            config = _config(CONFIG_MAPPING[classes()[name]], sizes, _PARTICULAR.get(name, {}))
            cls = getattr(transformers, head or name)
            with torch.device("meta"):
                weights = sum(parameter.numel() for parameter in cls(config).parameters())
            if weights > MOST_WEIGHTS:
                reasons.append(f"{weights:,} weights")
                continue
            torch.manual_seed(0)
            return cls(config).eval()
        except Exception as error:  # Configurations raise what they like.
            reasons.append(" ".join(f"{type(error).__name__}: {error}".split())[:90])
    raise ValueError("; ".join(dict.fromkeys(reasons)))


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the plain linear layers of a model, with their names."""
    yield from ((name, each) for name, each in model.named_modules() if type(each) is nn.Linear)


def _config(cls: Any, sizes: Mapping[str, Any], particular: Mapping[str, Any]) -> Any:
    """Return a configuration with these sizes, in itself and in its parts."""
    default = cls()
    fields: dict[str, Any] = {
        name: sizes[name] for name, value in default.to_dict().items() if type(value) is int and name in sizes
    }
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, transformers.PreTrainedConfig):
            fields[name] = _config(type(part), sizes, {}).to_dict()
    return cls(**fields | particular)
