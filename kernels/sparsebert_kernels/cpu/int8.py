"""The units of int8 dot products: which ones the machine has, and which one is in use."""

from __future__ import annotations

from . import native


def units() -> tuple[str, ...]:
    """Return the units that the library was built for and this machine supports, best first.

    ``avx512_vnni``, ``avx_vnni`` and ``neon_dotprod`` add four products of bytes at once; ``avx2``, ``neon``
    and ``baseline`` widen the bytes first.
    """
    if not native.available():
        return ()
    names: list[str] = []
    while (name := native.library().sb_int8_unit(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def unit() -> str:
    """Return the unit in use, or "none" without the library."""
    name = native.library().sb_int8_chosen() if native.available() else None
    return name.decode() if name else "none"


def use_unit(name: str | None) -> None:
    """Use a unit from now on, in this process; None for the best one of the instruction set in use.

    Raises:
        ValueError: The unit is unknown or not supported here.
    """
    if name is None and native.available():
        native.library().sb_choose_int8(None)
    elif name not in units() or native.library().sb_choose_int8(str(name).encode()) != 0:
        raise ValueError(
            f"int8 unit {name!r} is not supported here; supported: {', '.join(units()) or 'none'}"
        )
