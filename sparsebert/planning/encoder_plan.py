"""How the layers of a whole encoder run: one by one, in one native call of an engine, or packed on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

# The ways. An engine keeps the activations in the kernels' layout from the first layer to the last: "fp32" in
# float32, "paired" in pairs of bf16, "fp16" in float16 with the kept weights rounded to it. "paired int8" is
# "paired" with dense layers in int8. "packed" is the way of a GPU: tokens without padding, one product for
# query, key and value, residuals added by the products.
LAYERS, FP32, PAIRED, PAIRED_INT8, FP16 = "layers", "fp32", "paired", "paired int8", "fp16"
PACKED = "packed"
NAMES = {
    LAYERS: "the layers one by one",
    FP32: "one native call (fp32 engine)",
    PAIRED: "one native call (paired engine)",
    PAIRED_INT8: "one native call (paired engine, dense layers in int8)",
    FP16: "one native call (fp16 engine)",
    PACKED: "tokens without padding, query, key and value in one product",
}
# The tolerance that lets fused modules compute in each engine; "fp16" is none of a caller's.
TOLERANCES = {FP32: "fp32", PAIRED: "bf16", PAIRED_INT8: "int8", FP16: "fp16", PACKED: "fp32"}
# The change by every way but the first that a caller may see.
PADDING_NOTE = "hidden states at padding are zero"


@dataclass(frozen=True)
class EncoderPlan:
    """The way in which an encoder runs. Times are microseconds of its layers for ``tokens`` tokens.

    Attributes:
        way: "layers" (one by one), "fp32", "paired", "paired int8", "fp16" or, on a GPU, "packed".
        reason: The reason, as text.
        predicted_us: Predicted time of each way that came into question.
        measured_us: Measured time of the ways that were timed.
        tokens: Tokens that the times hold for.
        fuse: The caller's option: True demands fused layers, False forbids them, None lets the times decide.
        busy: Whether other programs used the machine during the timing: the prediction decided.
        decided_by: "timing", "cost model", "user" or "saved plan"; "" if there was nothing to decide.
    """

    way: str
    reason: str
    predicted_us: dict[str, float] = field(default_factory=dict)
    measured_us: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    fuse: bool | None = None
    busy: bool = False
    decided_by: str = ""

    @property
    def fused(self) -> bool:
        """Whether the layers run together, in one native call or packed."""
        return self.way != LAYERS

    def __str__(self) -> str:
        note = f"; {PADDING_NOTE}" if self.fused else ""
        return f"{NAMES[self.way]}; {self.reason}{note}"
