"""Mutants chosen by hand: in each package the lines whose failure would matter most.

The texts are short expressions, so that the lines around them can be reworded. A test tells which of them no
longer occur exactly once.
"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_KERNELS = "kernels/sparsebert_kernels"
_Fault = tuple[str, str, str, str]  # id, old text, new text, what is wrong

_FAULTS: dict[str, tuple[_Fault, ...]] = {
    # Native CPU kernels
    f"{_KERNELS}/cpu/src/token_panel.h": (
        (
            "cpu-panel-in-padded-column",
            "rows + j * stride + k, sizeof",
            "rows + j * stride, sizeof",
            "the last tokens are read from column 0 on",
        ),
        (
            "cpu-panel-out-tail",
            "for (; n < features; n++)",
            "for (; n + 1 < features; n++)",
            "off by one: the last output feature of a tail is not written",
        ),
    ),
    f"{_KERNELS}/cpu/src/tiled_linear.h": (
        (
            "cpu-bias-lost",
            "buffer[n] = static_cast<const float*>(w.bias)[n]",
            "buffer[n] = 0.0f",
            "a float32 bias is lost",
        ),
        (
            "cpu-tile-offset",
            "task - first_task[weight], tiles[t], token_panels + t * widest",
            "task - first_task[weight], tiles[t], token_panels",
            "wrong offset: every token tile reads the panel of the first",
        ),
    ),
    f"{_KERNELS}/cpu/src/element.h": (
        (
            "cpu-element-second-row",
            "Policy::template load<T>(values + row * length)",
            "Policy::template load<T>(values)",
            "wrong offset: the second row of a pair gets the weights of the first",
        ),
        (
            "cpu-element-whole-chunk",
            "done + 8 <= length",
            "done + 8 < length",
            "off by one: the last chunk of a row of 8 n weights is left out",
        ),
    ),
    f"{_KERNELS}/cpu/src/vector.h": (
        (
            "cpu-vector-swapped-axis",
            "values[v * UNIT + u]",
            "values[u * V + v]",
            "swapped axis: row and column of a bfloat16 unit",
        ),
    ),
    f"{_KERNELS}/cpu/src/gradient.h": (
        (
            "cpu-gradient-of-padding",
            "if (j > 0 && columns[j] == columns[j - 1]) continue;",
            "",
            "skipped check: the padding of a pair gets a gradient",
        ),
        (
            "cpu-gradient-lost-chain",
            "(sums[0] + sums[1]) + (sums[2] + sums[3])",
            "(sums[0] + sums[1]) + sums[2]",
            "a quarter of the tokens is left out of a dot product",
        ),
    ),
    f"{_KERNELS}/cpu/src/activation.h": (
        (
            "cpu-gelu-coefficient",
            "horner(square, numerator, 7) / horner(square, denominator, 5)",
            "horner(square, numerator, 6) / horner(square, denominator, 5)",
            "off by one: a coefficient of erf is left out",
        ),
    ),
    f"{_KERNELS}/cpu/src/bf16.h": (
        (
            "cpu-bfloat16-ties",
            "+ 0x7fffu + ((bits >> 16) & 1u)",
            "+ 0x8000u",
            "ties are rounded up, not to even",
        ),
    ),
    f"{_KERNELS}/cpu/src/selection.cpp": (
        (
            "cpu-order-of-negative-scores",
            "key >> 31 ? 0xffffffffu : 0x80000000u",
            "0x80000000u",
            "negative scores are ordered by magnitude",
        ),
    ),
    f"{_KERNELS}/cpu/src/dispatch.cpp": (
        (
            "cpu-shared-call-check",
            "w.in_features != first.in_features ||",
            "",
            "skipped check: weights of different widths share a call",
        ),
    ),
    f"{_KERNELS}/cpu/native.py": (
        (
            "cpu-strided-input",
            "if step != 1 or (tokens > 1 and stride < in_features):",
            "if step != 1:",
            "skipped check: overlapping rows of x go to the kernel",
        ),
    ),
    # Operators
    f"{_KERNELS}/dispatch.py": (
        (
            "ops-dead-rows-bias",
            "x.new_zeros(out_features) if bias is None else bias.to(x.dtype)",
            "x.new_zeros(out_features)",
            "rows that a compact weight leaves out lose their bias",
        ),
        (
            "ops-padding-gradient",
            "kept[1:] &= (row[1:] != row[:-1]) | (column[1:] != column[:-1])",
            "kept[1:] &= row[1:] != row[:-1]",
            "only the first weight of a row gets a gradient",
        ),
    ),
    f"{_KERNELS}/masked.py": (
        (
            "masked-straight-through",
            "full if straight_through else _masked(full, packed_mask)",
            "full",
            "pruned weights get a gradient",
        ),
    ),
    f"{_KERNELS}/radix_select.py": (
        ("radix-negative-zero", "(scores + 0.0).view", "scores.view", "-0.0 ranks below 0.0"),
    ),
    f"{_KERNELS}/bitmask.py": (
        ("bitmask-order", "_GATHER >> 56", "_GATHER >> 48", "the wrong byte of a product is stored"),
    ),
    f"{_KERNELS}/timing.py": (
        (
            "timing-percentile",
            "n=5, method",
            "n=4, method",
            "quartiles for fifths",
        ),
        (
            "timing-too-few-rounds",
            "timing if len(calm) >= min_rounds else",
            "timing if calm else",
            "skipped check: a timing with too few calm rounds is not busy",
        ),
    ),
    # Packed formats
    f"{_KERNELS}/formats/element.py": (
        (
            "element-padding-column",
            "columns[padding] = columns[padding - 1]",
            "columns[padding] = 0",
            "the padding of a bfloat16 pair is a weight of column 0",
        ),
    ),
    f"{_KERNELS}/formats/vector.py": (
        ("vector-odd-count", "counts % 2 == 1", "counts % 2 == 0", "odd panels get no padding"),
    ),
    f"{_KERNELS}/formats/panel.py": (
        (
            "panel-interleaving",
            "tiles.transpose(1, 2).reshape(-1)",
            "tiles.reshape(-1)",
            "swapped axis: coordinates go by slot, values by row",
        ),
        (
            "panel-tile-filling",
            "torch.minimum(rank, counts[panel_of_slot] - 1)",
            "torch.minimum(rank, counts[panel_of_slot])",
            "off by one: a filler reads a column of the next panel",
        ),
    ),
    f"{_KERNELS}/formats/transpose.py": (
        (
            "transpose-empty-slot",
            "packed.values.numel() - 1",
            "0",
            "wrong offset: padding of the transposed index reads a weight",
        ),
    ),
    f"{_KERNELS}/formats/column_panel.py": (
        ("column-panel-filling", "accumulate=True", "accumulate=False", "a filler overwrites a weight"),
    ),
    f"{_KERNELS}/formats/compact.py": (
        ("compact-axis", "mask.any(0)", "mask.any(1)", "swapped axis: live columns are those of the rows"),
    ),
    f"{_KERNELS}/formats/bitmap.py": (
        (
            "bitmap-offsets",
            "offsets = counts.cumsum(1) - counts",
            "offsets = counts.cumsum(1)",
            "off by one tile: weights of the tile itself count as before it",
        ),
    ),
    # GPU kernels
    f"{_KERNELS}/cuda/panel_forward.py": (
        (
            "triton-panel-order",
            "features = panel * H + tl.arange",
            "features = place * H + tl.arange",
            "wrong index: outputs go where the panel stands in the order",
        ),
    ),
    f"{_KERNELS}/cuda/panel_backward.py": (
        (
            "triton-filler-gradient",
            "tl.where(padding[:, None], 0.0, accumulator)",
            "accumulator",
            "lost mask: slots that fill up a tile get a gradient",
        ),
        (
            "triton-split-end",
            "last = tl.minimum(token + split_tokens, M)",
            "last = token + split_tokens",
            "lost bound: the last split goes on behind the last token",
        ),
    ),
    f"{_KERNELS}/cuda/bitmap.py": (
        (
            "triton-bitmap-rank",
            "popcount(bits & ((1 << bit) - 1))",
            "popcount(bits & (1 << bit))",
            "wrong index of a kept weight",
        ),
    ),
    f"{_KERNELS}/cuda/column_panel.py": (
        (
            "triton-column-panel-bias",
            "tl.load(bias + row, mask",
            "tl.load(bias + panel * H + inner, mask",
            "the bias of the place, not of the row that stands there",
        ),
    ),
    f"{_KERNELS}/cuda/masked.py": (
        (
            "triton-mask-word",
            "lane[None, :] >= 32 * word",
            "lane[None, :] > 32 * word",
            "off by one: the first column of a word has the bits of the word before",
        ),
    ),
    f"{_KERNELS}/cuda/masked_gradient.py": (
        ("triton-mask-bit", "(k & 31)[None, :]", "(k & 15)[None, :]", "wrong bit of the mask"),
    ),
    f"{_KERNELS}/cuda/device_functions.py": (
        (
            "triton-last-group",
            "size = tl.minimum(token_tiles - first, GROUP_M)",
            "size = GROUP_M",
            "token tiles of an incomplete group are skipped",
        ),
    ),
    f"{_KERNELS}/cuda/tile_configs.py": (
        (
            "tile-config-nearest",
            "return min(comparable",
            "return max(comparable",
            "the least similar shape is taken",
        ),
    ),
    # Foundations
    "sparsebert/bert.py": (
        (
            "bert-wrapped-key",
            "if part not in _WRAPPERS",
            "",
            "keys of a compiled or parallel model keep the wrapper's name",
        ),
        (
            "bert-head-size",
            "config.hidden_size // config.num_attention_heads",
            "config.num_attention_heads",
            "swapped sizes: the number of heads is taken for their size",
        ),
    ),
    "sparsebert/results.py": (
        (
            "results-last-line",
            'if earlier and not earlier.endswith(b"\\n"):',
            "if False:",
            "a record is appended to an unfinished line",
        ),
    ),
    "sparsebert/tickets/ticket.py": (
        (
            "ticket-below-module",
            'f"{key}.".startswith(f"{module}.")',
            "key.startswith(module)",
            "layer 10 counts as below layer 1",
        ),
    ),
    "sparsebert/tickets/file.py": (
        (
            "ticket-file-digest",
            "if _digest(description, payload) != digest:",
            "if False:",
            "skipped check: a damaged file is read",
        ),
    ),
    # Cost, layers
    "sparsebert/cost/candidates.py": (
        (
            "cost-training-format",
            "math.prod(work.block) == statistics.kept",
            "math.prod(work.block) >= statistics.kept",
            "skipped check: blocks that hold pruned weights are trained",
        ),
    ),
    "sparsebert/cost/gpu_roofline.py": (
        (
            "cost-waves",
            "math.ceil(programs / device.processors)",
            "(programs / device.processors)",
            "an incomplete wave counts as a part",
        ),
    ),
    "sparsebert/cost/mask_statistics.py": (
        (
            "cost-vector-count",
            "folded[0::2] | folded[1::2]",
            "folded[0::2] & folded[1::2]",
            "a vector counts only if all of its weights are kept",
        ),
    ),
    "sparsebert/nn/sparse_linear.py": (
        (
            "layer-activation-lost",
            "self.activation, transposed, residual)",
            '"none", transposed, residual)',
            "a fused activation is lost",
        ),
        (
            "layer-loads-outside-mask",
            "((weight != 0) & ~mask).sum()",
            "((weight != 0) & ~mask & mask).sum()",
            "skipped check: weights outside of the mask are dropped silently",
        ),
    ),
    "sparsebert/nn/joined_linears.py": (
        (
            "joined-moved",
            "self._present_addresses() == self._addresses",
            "bool(self._addresses)",
            "skipped check: a tensor with other data is not joined again",
        ),
    ),
    "sparsebert/nn/packed_layers.py": (
        (
            "packed-residual",
            "return module(x, residual)",
            "return module(x)",
            "the residual of a sparse layer is lost",
        ),
        (
            "packed-hooks",
            "if is_foreign(hook):",
            "if is_foreign(hook) and module.training:",
            "skipped check: a trace passes over foreign hooks",
        ),
    ),
    "sparsebert/nn/sequences.py": (
        (
            "ragged-padding-spreads",
            "each[source].masked_fill(outside, 0)",
            "each[source]",
            "NaN behind the last sequence spreads",
        ),
    ),
    # Pruning
    "sparsebert/pruning/top_k.py": (
        (
            "top-k-half-to-even",
            "(kept + count) % 2 == 1",
            "(kept + count) % 2 == 0",
            "half is rounded to odd",
        ),
        (
            "top-k-bin",
            "len(sizes) - 1 - place",
            "len(sizes) - place",
            "off by one: the bin above the threshold's",
        ),
    ),
    "sparsebert/pruning/sparsity_schedule.py": (
        (
            "schedule-remaining",
            "size * (1 - reached)",
            "size",
            "steps of the remaining weights are steps of all",
        ),
    ),
    "sparsebert/pruning/gates.py": (
        (
            "gates-axis",
            "gates.repeat_interleave(width, -1)",
            "gates.repeat(*[1] * (gates.dim() - 1), width)",
            "swapped axis: features of a head get the gates of all heads",
        ),
    ),
    "sparsebert/pruning/methods/head_importance.py": (
        (
            "importance-accumulate",
            "sums[name] + change if accumulate else change",
            "change",
            "gradients are cleared between batches",
        ),
    ),
    "sparsebert/pruning/methods/early_bird.py": (
        (
            "early-bird-window",
            "max(distances[-self.window :])",
            "min(distances[-self.window :])",
            "one small distance settles a mask",
        ),
    ),
    # Compaction, planning
    "sparsebert/compaction/attention_folding.py": (
        (
            "compaction-constant-values",
            "output.times(constant, value.bias[constant])",
            "output.times(constant, 0 * value.bias[constant])",
            "what constant dimensions of value bring is lost",
        ),
    ),
    "sparsebert/compaction/neurons.py": (
        (
            "compaction-constant-neurons",
            "folded = down.with_bias(down.times(constant, values))",
            "folded = down",
            "a lost bias: constants of neurons that go",
        ),
    ),
    "sparsebert/compaction/narrow_attention.py": (
        (
            "compaction-head-masks",
            "mask[:, list(group.heads)]",
            "mask[:, : len(group.heads)]",
            "masks for every head are those of the first heads",
        ),
    ),
    "sparsebert/compaction/live_rectangle.py": (
        (
            "compaction-dead-rows-bias",
            "whole = self.bias.to(live.dtype)",
            "whole = 0 * self.bias.to(live.dtype)",
            "rows that are left out lose their bias",
        ),
    ),
    "sparsebert/compaction/expand.py": (
        (
            "compaction-expanded-head",
            "widths.get(head, (0, 0))",
            "widths.get(head, (0, size))",
            "a head that was taken out comes back with the rows of another",
        ),
    ),
    "sparsebert/compaction/thin_rows.py": (
        (
            "compaction-thin-rows",
            "keepdim=True) >= least",
            "keepdim=True) > least",
            "off by one: rows of the least size go",
        ),
    ),
    "sparsebert/planning/layer_planner.py": (
        (
            "planner-shared-input-blocks",
            "_agree_on_blocks([by_key[key] for key in keys if key in by_key])",
            "pass",
            "layers of one input get different blocks",
        ),
    ),
    "sparsebert/planning/layer_decision.py": (
        (
            "planner-slower-than-dense",
            "speedup < LEAST_SPEEDUP and not trainable",
            "False",
            "skipped check: a format that measured slower than dense is taken",
        ),
    ),
    # Hugging Face, tasks, other projects
    "sparsebert/hf/quantizer.py": (
        (
            "hf-masks-digest",
            "if config.masks != stored_digest(",
            "if None is stored_digest(",
            "skipped check: masks of another config.json are loaded",
        ),
    ),
    "sparsebert/hf/verify_files.py": (
        (
            "hf-tensor-dtype",
            "shape != expected.shape or dtype not in expected.dtypes",
            "shape != expected.shape",
            "skipped check: the dtype of a stored tensor",
        ),
    ),
    "sparsebert/tasks/question_windows.py": (
        (
            "encoding-answer-start",
            "spans[:, 1] > start",
            "spans[:, 1] >= start",
            "off by one: the token before an answer belongs to it",
        ),
        (
            "windows-right-context",
            "starts + counts - 1 - positions",
            "starts + counts - positions",
            "off by one: a token has a token more context to its right",
        ),
    ),
    "sparsebert/tasks/tagged_words.py": (
        (
            "words-first-piece",
            "word if word > last else None",
            "word if word >= last else None",
            "every piece of a word carries its tag",
        ),
    ),
    "sparsebert/tasks/entity_scores.py": (
        (
            "entities-begin",
            'place in ("B", "S")',
            'place in ("S",)',
            "B goes on with the entity before it",
        ),
    ),
    "sparsebert/tasks/answer_scores.py": (
        (
            "answers-best-threshold",
            "differences[order[at - 1]]",
            "differences[order[at - 2]]",
            "off by one: the threshold of the question before",
        ),
    ),
    "sparsebert/tasks/text_blocks.py": (
        (
            "encoding-block-room",
            "else (max_length - 2, 1)",
            "else (max_length - 1, 1)",
            "off by one: blocks are a token too long",
        ),
    ),
    "sparsebert/tasks/verdict.py": (
        (
            "metrics-winning",
            "dense.mean - dense.std",
            "dense.mean + dense.std",
            "a winning ticket has to beat the dense model",
        ),
    ),
    "sparsebert/tasks/metrics.py": (
        ("metrics-f1-class", "labels=[1]", "labels=[0]", "F1 of the other class"),
    ),
    "sparsebert/tasks/squad.py": (
        (
            "squad-longest-answer",
            "length <= max_tokens",
            "length < max_tokens",
            "off by one: answers of the greatest length are left out",
        ),
        (
            "squad-null-threshold",
            "none - score > threshold",
            "none - score >= threshold",
            "no answer where both are as good",
        ),
    ),
    "sparsebert/interop/smp.py": (
        (
            "interop-smp-order",
            "keys = sorted(structure(model).linears)\n    shapes",
            "keys = list(structure(model).linears)\n    shapes",
            "bits of an SMP file go to the matrices in model order",
        ),
    ),
    "sparsebert/interop/movement_pruning.py": (
        (
            "interop-top-k-count",
            "int(share * scores.numel())",
            "round(share * scores.numel())",
            "another count than that of the source's binarizer",
        ),
    ),
    # Learning, training, lottery
    "sparsebert/mask_learning/schedules.py": (
        ("mask-learning-cubic", "(1 - progress) ** 3", "(1 - progress) ** 2", "a square for a cube"),
    ),
    "sparsebert/mask_learning/rule.py": (
        (
            "mask-learning-penalty-gradient",
            "probabilities * (1 - probabilities)",
            "probabilities",
            "wrong derivative of the sigmoid",
        ),
    ),
    "sparsebert/training/distillation.py": (
        (
            "distillation-temperature",
            "temperature**2 *",
            "temperature *",
            "the teacher's loss loses a factor of T",
        ),
    ),
    "sparsebert/training/mask_enforcer.py": (
        (
            "training-optimizer-state",
            "value.shape == parameter.shape",
            "value.shape != parameter.shape",
            "momentum of pruned weights is not cleared",
        ),
    ),
    "sparsebert/training/length_grouping.py": (
        (
            "training-epoch-order",
            "(self._seed, self._epoch)",
            "(self._seed, 0)",
            "every epoch has the same batches",
        ),
    ),
    "sparsebert/training/callbacks.py": (
        (
            "training-learned-step",
            "self._learner.derive_(state.global_step)",
            "self._learner.derive_(state.global_step + 1)",
            "off by one: masks of the next step",
        ),
    ),
    "sparsebert/lottery/round_start.py": (
        (
            "lottery-fresh-head",
            "plan.seed + number",
            "plan.seed",
            "each round gets the same fresh head",
        ),
        (
            "lottery-stop-without-rewinding",
            "steps * (number + 1 if continuous else 1)",
            "steps * (number if continuous else 1)",
            "off by one: rounds without rewinding do not train",
        ),
    ),
    "sparsebert/lottery/loop.py": (
        (
            "lottery-rewind-kept",
            "self.folder.rewind if number == 0 else None",
            "self.folder.rewind if number == 1 else None",
            "off by one: the checkpoint to rewind to is that of round 1",
        ),
    ),
    "sparsebert/lottery/run_folder.py": (
        (
            "lottery-other-settings",
            "if stored.get(name) != new.get(name):",
            "if False:",
            "skipped check: a run goes on in a folder of other settings",
        ),
    ),
    "sparsebert/lottery/methods/snip.py": (
        ("lottery-snip-start", ", start=first", "", "rounds begin at 0, not at SNIP's sparsity"),
    ),
    # Benchmarks, reports, commands
    "sparsebert/bench/timer.py": (
        ("bench-ratio", "slow / fast", "fast / slow", "swapped: how many times slower"),
    ),
    "sparsebert/bench/output_check.py": (
        (
            "bench-padding-compared",
            "real = mask.bool()",
            "real = mask >= 0",
            "padding tokens are compared too",
        ),
    ),
    "sparsebert/bench/activations.py": (
        ("bench-freed-memory", "self._held -= size", "pass", "memory that was freed counts on"),
    ),
    "sparsebert/report/plain_text.py": (
        ("report-escaped-bar", "[\\\\`~|]", "[\\\\`~]", "a bar in a cell cuts the row"),
    ),
    "sparsebert/report/lottery_tables.py": (
        (
            "report-dense-round",
            'row["sparsity"] or row["label"] == "dense"',
            "True",
            "dense rounds of a method count as its tickets",
        ),
    ),
    "sparsebert/workflows/transfer.py": (
        (
            "transfer-different-sparsities",
            "max(sparsities.values()) - min(sparsities.values()) > SAME_SPARSITY",
            "False",
            "skipped check: tickets of different sparsities are compared without a word",
        ),
    ),
    "sparsebert/workflows/train.py": (
        (
            "workflow-pooler",
            "if has_pooler(task):",
            "if True:",
            "the mask of an absent pooler stays in a ticket",
        ),
    ),
    "sparsebert/cli/path_checks.py": (
        (
            "cli-output-folder",
            "if file.is_dir() else None)\n        if problem",
            "if False else None)\n        if problem",
            "skipped check: a folder is taken for an output file",
        ),
    ),
    "sparsebert/cli/prune.py": (
        (
            "cli-one-sparsity",
            "if len(sparsities) != 1:",
            "if not sparsities:",
            "skipped check: further sparsities are ignored",
        ),
    ),
    "sparsebert/tickets/apply.py": (
        (
            "ticket-tied-weights",
            "if len(names) == 1 or masked is None:",
            "if True:",
            "skipped check: one side of tied weights is masked",
        ),
    ),
    "sparsebert/tickets/bits.py": (
        (
            "stored-bits-past-end",
            "0xFF >> weights % 8",
            "0x7F >> weights % 8",
            "off by one: a bit behind the last weight is accepted",
        ),
        ("ticket-file-bytes", "-(-math.prod(shape) // 8)", "math.prod(shape) // 8", "the last bits are lost"),
    ),
    "sparsebert/pruning/density.py": (
        (
            "prune-decimal-sparsity",
            "1 - Fraction(str(sparsity))",
            "1 - Fraction(sparsity)",
            "a sparsity is read as binary and keeps one weight more",
        ),
    ),
    "sparsebert/pruning/read_matrices.py": (
        (
            "prune-dead-weights",
            "matrix = matrix.masked_fill(~mask, 0)",
            "pass",
            "NaN of weights that are pruned already is refused",
        ),
    ),
}

CHOSEN: tuple[Mutant, ...] = tuple(
    Mutant(id, path, old, new, fault) for path, faults in _FAULTS.items() for id, old, new, fault in faults
)
