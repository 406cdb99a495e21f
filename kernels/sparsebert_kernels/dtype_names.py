"""Names of floating-point dtypes: ``float32`` or ``fp32``, ``bfloat16`` or ``bf16``, and so on."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import unknown

SHORT_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
_LONG_NAMES = {short: long for long, short in SHORT_NAMES.items()}


def long_name(dtype: object, allowed: Sequence[str] = tuple(SHORT_NAMES), kind: str = "dtype") -> str:
    """Return PyTorch's name of a dtype, such as ``float32``.

    Args:
        dtype: A long or short name, or a ``torch.dtype``.
        allowed: The dtypes to accept, by long name.
        kind: Name of the argument in the error message.

    Raises:
        ValueError: The name is another one; the message suggests the nearest.
    """
    name = str(dtype).removeprefix("torch.")
    name = _LONG_NAMES.get(name, name)
    if name not in allowed:
        raise unknown(kind, str(dtype), [*allowed, *(SHORT_NAMES[each] for each in allowed)])
    return name


def short_name(dtype: object, allowed: Sequence[str] = tuple(SHORT_NAMES), kind: str = "dtype") -> str:
    """Return the short name of a dtype, such as ``fp32``; see :func:`long_name` for arguments and errors."""
    return SHORT_NAMES[long_name(dtype, allowed, kind)]
