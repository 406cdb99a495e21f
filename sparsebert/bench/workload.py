"""The workload of a benchmark: model, batches, dtype, threads and device."""

from __future__ import annotations

import dataclasses
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.bert import positions
from sparsebert.file_types import require_regular
from sparsebert_kernels.dtype_names import long_name
from sparsebert_kernels.errors import first_line, unknown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Published shapes, built with random weights: speed depends on which weights are zero, not on their values.
SHAPES: dict[str, dict[str, int]] = {
    name: {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }
    for name, layers, hidden, heads in (
        ("bert-tiny", 2, 128, 2),
        ("minilm", 6, 384, 12),
        ("bert-base", 12, 768, 12),
        ("bert-large", 24, 1024, 16),
    )
}
MAX_BATCHES = 8
# Sequences by which int8 baselines choose their scales.
CALIBRATION_SEQUENCES = 32


@dataclass(frozen=True)
class Workload:
    """The work of a benchmark.

    Attributes:
        model: A name in ``SHAPES``, a local folder or a hub id.
        batch: Sequences of a batch.
        lengths: Tokens of each sequence.
        dtype: A name in ``DTYPES``.
        threads: CPU threads.
        device: "cpu", "cuda" or "cuda:N".
        seed: Seed of random weights and token ids.
        graphs: Whether all sides run in CUDA graphs.
    """

    model: str
    batch: int = 1
    lengths: tuple[int, ...] = (128,)
    dtype: str = "float32"
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    graphs: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be a positive integer, got {self.batch}")
        if self.threads < 1:
            raise ValueError(f"threads must be a positive integer, got {self.threads}")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"each sequence needs at least one token, got lengths {self.lengths[:5]}")
        object.__setattr__(self, "dtype", long_name(self.dtype))
        if self.threads > (cpus := os.cpu_count() or self.threads):
            raise ValueError(f"threads must be at most {cpus}, the CPUs of this machine, got {self.threads}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        if self.graphs and self.device == "cpu":
            raise ValueError("CUDA graphs (--graphs) need --device cuda; the device is cpu")
        if self.device != "cpu":
            import torch

            if self.device.split(":")[0] != "cuda":
                raise unknown("device", self.device, ("cpu", "cuda"))
            if not torch.cuda.is_available():
                raise ValueError(f"device is {self.device!r}, but torch sees no CUDA GPU here; use cpu")
            gpus = [f"cuda:{each}" for each in range(torch.cuda.device_count())]
            if self.device not in ("cuda", *gpus):
                raise ValueError(f"device is {self.device!r}; the GPUs here are {', '.join(gpus)}")

    @property
    def random_weights(self) -> bool:
        """Whether the model is a shape with random weights."""
        return self.model in SHAPES

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(sequences, padded length) of each batch."""
        groups = [
            self.lengths[start : start + self.batch] for start in range(0, len(self.lengths), self.batch)
        ]
        return tuple((len(group), max(group)) for group in groups)

    @property
    def real_tokens(self) -> int:
        """Tokens without padding."""
        return sum(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens with padding."""
        return sum(rows * width for rows, width in self.shapes)

    def record(self) -> dict[str, Any]:
        """Return fields and derived values as plain JSON; of a local folder only its name."""
        folder = Path(self.model)
        fields = dataclasses.asdict(self)
        if not self.graphs:
            del fields["graphs"]  # missing in records of earlier versions
        return {
            **fields,
            "model": folder.name if folder.is_dir() else self.model,
            "lengths": list(self.lengths),
            "random_weights": self.random_weights,
            "sequences": len(self.lengths),
            "batches": len(self.shapes),
            "real_tokens": self.real_tokens,
            "padded_tokens": self.padded_tokens,
        }

    def load_model(self) -> PreTrainedModel:
        """Load the dense model in float32 (float64 if that is the dtype), in eval mode.

        Raises:
            ValueError: The model cannot be found or has too few positions; or see
                ``sparsebert.tasks.load_checked``.
        """
        import torch
        from transformers import BertConfig, BertModel

        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        if self.random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = BertModel(BertConfig(**SHAPES[self.model]), add_pooling_layer=False)
        else:
            model = self._load_named(dtype)
        longest, limit = max(self.lengths), positions(model)
        if limit is not None and longest > limit:
            raise ValueError(
                f"sequences of {longest} tokens are too long for {self.model}: its limit is {limit}"
            )
        return model.to(dtype).eval()

    def _load_named(self, dtype: torch.dtype) -> PreTrainedModel:
        from transformers import AutoModel

        from sparsebert.tasks.load_checked import load_config, load_weights

        try:
            load_config(self.model)
            loaded: PreTrainedModel = load_weights(AutoModel, self.model, dtype=dtype)
        except OSError as error:
            if Path(self.model).exists():
                raise
            raise ValueError(f"{unknown('model', self.model, SHAPES)}; {error}") from None
        return loaded

    def make_batches(self, vocabulary: int) -> tuple[dict[str, torch.Tensor], ...]:
        """Return random input_ids and an attention_mask for each batch.

        Both are int64 [sequences, padded tokens], padded on the right.

        Args:
            vocabulary: Number of token ids.
        """
        return self._random_batches(vocabulary, self.seed)

    def make_calibration(self, vocabulary: int) -> tuple[dict[str, torch.Tensor], ...]:
        """Return ``CALIBRATION_SEQUENCES`` or more, like those of ``make_batches`` with other tokens."""
        repeats = -(-CALIBRATION_SEQUENCES // len(self.lengths))
        return tuple(
            batch
            for repeat in range(1, 1 + repeats)
            for batch in self._random_batches(vocabulary, (self.seed + repeat) % 2**32)
        )

    def encode(self, texts: Sequence[str]) -> tuple[dict[str, torch.Tensor], ...]:
        """Return ``texts`` encoded by the model's tokenizer, in batches of the workload's size and length.

        Raises:
            ValueError: The model has no tokenizer.
        """
        from sparsebert.tasks.load_tokenizer import load_tokenizer

        if self.random_weights:
            raise ValueError(f"{self.model} has random weights and no tokenizer; omit the calibration texts")
        tokenizer = load_tokenizer(self.model)
        encoded = [
            tokenizer(
                list(texts[start : start + self.batch]),
                padding=True,
                truncation=True,
                max_length=max(self.lengths),
                return_tensors="pt",
            )
            for start in range(0, len(texts), self.batch)
        ]
        return tuple({name: each[name] for name in ("input_ids", "attention_mask")} for each in encoded)

    def _random_batches(self, vocabulary: int, seed: int) -> tuple[dict[str, torch.Tensor], ...]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        batches, start = [], 0
        for rows, width in self.shapes:
            ids = torch.randint(min(1000, vocabulary // 2), vocabulary, (rows, width), generator=generator)
            lengths = torch.tensor(self.lengths[start : start + rows])
            mask = (torch.arange(width) < lengths[:, None]).long()
            batches.append({"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask})
            start += rows
        return tuple(batches)


def read_lengths(path: str | Path, model: str, batch: int, *, limit: int, seed: int = 0) -> tuple[int, ...]:
    """Read sequence lengths from a file with one sentence or one integer per line.

    The model's tokenizer counts the tokens of sentences. The names in ``SHAPES`` have no tokenizer; their
    words, punctuation marks and two special tokens are counted. From a long file, ``MAX_BATCHES`` batches of
    consecutive lines are sampled, which preserves the mix of lengths.

    Args:
        path: The file, in UTF-8.
        model: See ``Workload``.
        batch: Sequences of a batch.
        limit: Longer sequences are truncated to this length.
        seed: Seed of the sample.

    Raises:
        ValueError: The file cannot be read or is empty, or a length is below 1.
    """
    lines = _read_lines(path, "lengths")
    if not lines:
        raise ValueError(f"{path} is empty; write one sentence or one integer per line")
    if all(re.fullmatch(r"-?\d+", line) for line in lines):
        lengths = [int(line) for line in lines]
    else:
        lengths = _count_tokens(lines, model)
    for number, length in enumerate(lengths, start=1):
        if length < 1:
            raise ValueError(f"{path}: entry {number} is {length}; a length must be at least 1")
    groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    whole = [group for group in groups if len(group) == batch] or groups
    if len(whole) > MAX_BATCHES:
        whole = random.Random(seed).sample(whole, MAX_BATCHES)
    return tuple(min(length, limit) for group in whole for length in group)


def read_texts(path: str | Path) -> tuple[str, ...]:
    """Read sentences from a UTF-8 file, one per line, the first ``CALIBRATION_SEQUENCES``.

    Raises:
        ValueError: The file cannot be read or is empty.
    """
    lines = _read_lines(path, "texts")
    if not lines:
        raise ValueError(f"{path} is empty; write one sentence per line")
    return tuple(lines[:CALIBRATION_SEQUENCES])


def _read_lines(path: str | Path, what: str) -> list[str]:
    """Return the lines of a UTF-8 file that are not blank, stripped."""
    require_regular(path)
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ValueError(f"cannot read {what} from {path}: {reason}") from None
    return [line for line in lines if line]


def hush_transformers() -> None:
    """Silence transformers' progress bars and reports of unused weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _count_tokens(sentences: list[str], model: str) -> list[int]:
    if model in SHAPES:
        return [2 + len(re.findall(r"\w+|[^\w\s]", sentence)) for sentence in sentences]
    from sparsebert.tasks.load_tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model} has no tokenizer to count tokens with ({first_line(error).rstrip('.')})"
        ) from None
    return [len(ids) for ids in tokenizer(sentences)["input_ids"]]
