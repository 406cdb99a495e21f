"""The empirical Fisher matrix of a weight matrix, restricted to blocks on its diagonal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert.pruning.granularity import Granularity

# Blocks that are inverted at once in float64.
_CHUNK = 4096


class BlockFisher:
    """lambda I + 1/m sum_i g_i g_i^T in blocks, for gradients g_1 ... g_m of a weight matrix.

    Weights are ordered unit by unit, the units of a row of units one after the other: for single weights that
    is along the rows, as in Kurtic et al. 2022. A block holds as many whole units as fit; a unit that is
    larger than a block has blocks of its own, the last of them padded.

    Args:
        key: Key of the matrix.
        units: Granularity of the units.
        shape: [out, in] of the matrix.
        block: Most weights of a block.
        damping: lambda.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        key: str,
        units: Granularity,
        shape: torch.Size,
        block: int,
        damping: float,
        dtype: torch.dtype,
    ) -> None:
        self._key = key
        rows, columns = units.block_in(shape)
        size = rows * columns
        places = units.tiles(torch.arange(shape.numel()).view(shape), -1).reshape(-1, size)
        self._grid = units.units(shape)
        self._shape = shape
        self._width = block // size * size or block
        self._part = min(size, self._width)
        if size > self._width:
            places = F.pad(places, (0, -size % self._width), value=-1)
        places = F.pad(places.flatten(), (0, -places.numel() % self._width), value=-1)
        self._places = places.view(-1, self._width)  # [blocks, width]: places in the matrix, -1 for none
        self._damping = damping
        self._outer = torch.zeros(*self._places.shape, self._width, dtype=dtype)
        self._gradients = 0

    @staticmethod
    def nbytes(shape: torch.Size, block: int, dtype: torch.dtype) -> int:
        """Return about the bytes of the blocks of a matrix."""
        return shape.numel() * block * dtype.itemsize

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add the outer products of gradients [out, in].

        Raises ValueError if one is NaN or infinite.
        """
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise ValueError(f"a gradient of {self._key} is NaN or infinite")
        stacked = torch.stack([self._blocks(gradient) for gradient in gradients], 1)  # [blocks, g, width]
        self._outer.baddbmm_(stacked.transpose(1, 2), stacked)
        self._gradients += len(gradients)

    def saliencies(self, weight: Tensor) -> Tensor:
        """Return w_g^T ([F^-1]_gg)^-1 w_g / 2 of each unit g of a matrix [out, in].

        float64 [unit rows, unit columns]. The loss of a unit with several blocks is the sum of theirs.
        """
        parts = []
        for _, values, fisher in self._chunks(weight):
            if self._part == self._width:
                parts.append(torch.einsum("bi,bij,bj->b", values, fisher, values))
            else:
                solved = self._solved(values, self._inverse(fisher))
                parts.append((values.view(solved.shape) * solved).sum(2).flatten())
        units = self._grid[0] * self._grid[1]
        losses = torch.cat(parts)
        if self._part == self._width:
            losses = losses.view(units, -1).sum(1)
        return losses[:units].view(self._grid) / 2

    def compensated(self, weight: Tensor, mask: Tensor, joint: bool) -> Tensor:
        """Prune a matrix and change its other weights so that the loss grows least.

        Args:
            weight: [out, in].
            mask: Weights to keep, bool [out, in]; of whole units.
            joint: Whether all weights that a block loses are compensated together,
                w_K += [F_KK]^-1 F_KP w_P, instead of each unit as if it were the only one,
                w -= F^-1[:, g] ([F^-1]_gg)^-1 w_g.

        Returns:
            [out, in] in the dtype of ``weight``, 0 where the mask prunes.
        """
        changed = torch.zeros(weight.numel() + 1, dtype=torch.float64)
        kept_blocks = self._blocks(mask)
        for rows, values, fisher in self._chunks(weight):
            kept = kept_blocks[rows]
            if joint:
                goal = (fisher @ values[:, :, None]).masked_fill(~kept[:, :, None], 0)
                system = fisher * (kept[:, :, None] & kept[:, None])
                system.diagonal(dim1=1, dim2=2).masked_fill_(~kept, 1)
                solution = torch.cholesky_solve(goal, self._factor(system))[:, :, 0]
            else:
                inverse = self._inverse(fisher)
                loss = self._solved(values, inverse).flatten(1).masked_fill(kept, 0)
                solution = values - (inverse @ loss[:, :, None])[:, :, 0]
            changed[self._places[rows]] = solution
        return changed[:-1].view(self._shape).to(weight.dtype).where(mask, 0.0)

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Cut a matrix [out, in] into blocks [blocks, width], padded with 0."""
        return F.pad(matrix.flatten(), (0, 1))[self._places]

    def _chunks(self, weight: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield some blocks at a time: which, their weights [blocks, width] and F [blocks, width, width]."""
        values = self._blocks(weight).double()
        damping = self._damping * torch.eye(self._width, dtype=torch.float64)
        for begin in range(0, len(values), _CHUNK):
            rows = slice(begin, begin + _CHUNK)
            yield rows, values[rows], self._outer[rows].double() / self._gradients + damping

    def _solved(self, values: Tensor, inverse: Tensor) -> Tensor:
        """Return ([F^-1]_gg)^-1 w_g of the parts of blocks: [blocks, parts, weights of a part]."""
        parts = values.view(len(values), -1, self._part)
        count = parts.shape[1]
        corners = inverse.view(len(values), count, self._part, count, self._part)
        corners = corners.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        return torch.linalg.solve(corners, parts[..., None])[..., 0]

    def _inverse(self, fisher: Tensor) -> Tensor:
        return torch.cholesky_inverse(self._factor(fisher))

    def _factor(self, fisher: Tensor) -> Tensor:
        """Return the Cholesky factors of blocks. Raises ValueError if there are none."""
        lower, failed = torch.linalg.cholesky_ex(fisher)
        if failed.any():
            raise ValueError(
                f"the Fisher matrix of {self._key} is singular with damping {self._damping:g}: "
                "use a larger damping"
            )
        return lower
