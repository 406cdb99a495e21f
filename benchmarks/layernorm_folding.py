"""Errors in bfloat16 of products behind a LayerNorm, ordinary and folded, on real weights; no GPU is needed.

    python -m benchmarks.layernorm_folding [--model FOLDER ...] [--out benchmarks/results/layernorm.jsonl]

A product y = LN(r) W^T + b reads sums with the residual, r, which are stored in bfloat16. With weight gamma
and bias beta of the LayerNorm, and G = W * gamma, rounded to bfloat16, whose row sums are s, folding computes

    y = (r G^T - mean(r) s) / std(r) + (W beta + b)

bfloat16 is emulated on the CPU: operands and outputs are rounded, and products accumulate in float32. The
errors are those against float64. The times of the LayerNorms on a GPU are modelled.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from benchmarks import output, roofline
from sparsebert.bench import environment
from sparsebert.cost.gpu_roofline import KNOWN, Roofline
from sparsebert.demo.real_model import NAME, sentences, weights_folder
from sparsebert.nn.encoder_layers import NAMES, encoder_layers, model_family
from sparsebert.report.layernorm_tables import layernorm_tables
from sparsebert.report.roofline_tables import SHOWN
from sparsebert.results import Record, stamp
from sparsebert.tasks.load_tokenizer import load_tokenizer

# Width of BERT-base, and the products of one of its layers in the records of the roofline.
HIDDEN, PRODUCTS = 768, ("QKV", "output", "FFN up, GELU", "FFN down")

Change = Callable[[Tensor], Tensor]


def in_bfloat16(values: Tensor) -> Tensor:
    """Return the values rounded to bfloat16, in their own dtype."""
    return values.bfloat16().to(values.dtype)


class Product(NamedTuple):
    """A linear layer and the LayerNorm before it, all tensors in one dtype.

    Attributes:
        weight: Weight of the linear layer, [out, hidden].
        bias: Its bias, [out].
        gamma: Weight of the LayerNorm, [hidden].
        beta: Its bias, [hidden].
        eps: Its epsilon.
    """

    weight: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float

    def mapped(self, change: Change) -> Product:
        """Return the product with all tensors changed."""
        return Product(*map(change, self[:4]), self.eps)

    def ordinary(self, sums: Tensor, rounded: Change = in_bfloat16) -> Tensor:
        """Return LayerNorm and product for sums [tokens, hidden]: [tokens, out]."""
        normalised = F.layer_norm(sums, self.gamma.shape, self.gamma, self.beta, self.eps)
        return rounded(F.linear(rounded(normalised), self.weight, self.bias))

    def folded(self, sums: Tensor, observed: Tensor, rounded: Change = in_bfloat16) -> Tensor:
        """Return the product with the LayerNorm folded into it: [tokens, out].

        Args:
            sums: The sums as they are stored, [tokens, hidden].
            observed: The sums whose mean and standard deviation are taken, [tokens, hidden].
            rounded: Rounds G and the outputs.
        """
        scaled = rounded(self.weight * self.gamma)
        variance, mean = torch.var_mean(observed, 1, correction=0, keepdim=True)
        centred = F.linear(sums, scaled) - mean * scaled.sum(1)
        return rounded(centred * (variance + self.eps).rsqrt() + F.linear(self.beta, self.weight, self.bias))


def errors(product: Product, sums: Tensor, parameters: str) -> dict[str, dict[str, float]]:
    """Return the errors of a product, by form of the LayerNorm.

    ``largest`` is relative to the largest output, ``rms`` to the root mean square of the outputs.

    Args:
        product: The product, in float32.
        sums: Its inputs, [tokens, hidden], in float32.
        parameters: "fp32": every form rounds the parameters, and the errors are those against the product
            that is given. "bf16": the parameters are rounded first, as in a model that is in bfloat16.
    """
    in_bf16, stored = product.mapped(in_bfloat16), in_bfloat16(sums)
    model = in_bf16 if parameters == "bf16" else product
    exact = model.mapped(Tensor.double).ordinary(sums.double(), lambda values: values)
    outputs = {
        "ordinary": in_bf16.ordinary(stored),
        "ordinary_fp32_sums": in_bf16.ordinary(sums),
        "folded": model.folded(stored, stored),
        "folded_early_statistics": model.folded(stored, sums),
    }
    return {form: _errors(computed.double() - exact, exact) for form, computed in outputs.items()}


def _errors(difference: Tensor, exact: Tensor) -> dict[str, float]:
    return {
        "largest": (difference.abs().max() / exact.abs().max()).item(),
        "rms": (difference.norm() / exact.norm()).item(),
    }


@torch.inference_mode()
def measured(name: str, folder: str) -> Iterator[dict[str, Any]]:
    """Yield the fields of two records for each product behind a LayerNorm of a layer, by ``parameters``.

    The sums are those that the LayerNorms read when the model in float32 computes the demo's sentences.

    Raises:
        ValueError: The model is no base model whose LayerNorms follow the sums.
    """
    model = AutoModel.from_pretrained(folder).float().eval()
    family = model_family(type(model))
    if family is None or family.pre_norm:
        raise ValueError(f"{name} must be a {NAMES} whose LayerNorms follow the sums")
    layers = encoder_layers(getattr(model, family.encoder[0]), family)
    batch = load_tokenizer(folder)(sentences(), padding=True, return_tensors="pt")
    kept, sums = batch["attention_mask"].bool(), {}
    for norm in (norm for layer in layers for norm in layer.norms):
        norm.register_forward_pre_hook(lambda module, inputs: sums.update({module: inputs[0][kept]}))
    model(**batch)
    machine = environment.detect().record()
    for number, layer in enumerate(layers):
        behind = {"ffn_up": (layer.linears[4], layer.norms[0])}
        if number:  # before the first layer stands the LayerNorm of the embeddings
            before = layers[number - 1].norms[1]
            projections = zip(("query", "key", "value"), layer.linears, strict=False)
            behind = {kind: (linear, before) for kind, linear in projections} | behind
        for kind, (linear, norm) in behind.items():
            product = Product(linear.weight, linear.bias, norm.weight, norm.bias, norm.eps)
            deviation, mean = torch.std_mean(sums[norm], 1, correction=0)
            for parameters in ("fp32", "bf16"):
                yield {
                    "part": "error",
                    "environment": machine,
                    "model": name,
                    "layer": number,
                    "product": kind,
                    "shape": list(linear.weight.shape),
                    "tokens": len(sums[norm]),
                    "mean_over_deviation": (mean.abs() / deviation).max().item(),
                    "parameters": parameters,
                    "errors": errors(product, sums[norm], parameters),
                }


def modelled() -> Iterator[dict[str, Any]]:
    """Yield the fields of a record for each number of tokens: times of a layer of BERT-base on a GPU."""
    device = KNOWN[roofline.DEVICE]
    sparsity, block = SHOWN
    layers = [row for row in roofline.modelled() if (row["sparsity"], row["block"]) == SHOWN]
    for tokens in roofline.TOKENS:
        products = [row for row in layers if row["tokens"] == tokens and row["layer"] in PRODUCTS]
        seconds = Roofline(device, roofline.DTYPE, tokens).pass_seconds(HIDDEN)
        yield {
            "part": "time",
            "device": device.name,
            "source": device.source,
            "tokens": tokens,
            "hidden": HIDDEN,
            "layernorm_us": round(seconds * 1e6, 2),
            "kernel_us": round(device.kernel * 1e6, 2),
            "dense_us": round(sum(row["dense_us"] for row in products), 2),
            "sparse_us": round(sum(row["us"] for row in products), 2),
            "sparsity": sparsity,
            "block": block,
        }


def main() -> int:
    """Print the tables and, with ``--out``, write the records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="folders of models beside MiniLM")
    parser.add_argument("--out", type=Path, help="write the records to this file and replace its content")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fields: list[dict[str, Any]] = []
    try:
        for name, folder in (
            (NAME, weights_folder()),
            *((each.resolve().name, each) for each in options.model),
        ):
            fields += measured(name, str(folder))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    rows: list[Record] = [stamp("layernorm_folding", row) for row in (*fields, *modelled())]
    if options.out:
        output.replace(options.out, rows)
    output.show(layernorm_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
