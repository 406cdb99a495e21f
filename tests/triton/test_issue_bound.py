"""What follows the main loop counts: towards the ceiling of a kernel, and as a problem where it is long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsebert_kernels.cuda.aot.compile_case import CompileCase
from sparsebert_kernels.cuda.aot.compiler import MOST_INSTRUCTIONS, _issue_bound, _problems
from sparsebert_kernels.cuda.aot.machine_code import Loop
from sparsebert_kernels.cuda.aot.targets import TARGETS
from tests.triton.matmul_cases import product_case

SM_90 = TARGETS["sm_90"]
CASE = product_case("128x64", (128, 64, 64))
# Four warps issue one product of 64 x 64 x 16 together: 8 of them are a step of the case.
STEP = Loop(100, {(64, 64, 16): 8})
TENSOR_CYCLES = 128 * 64 * 64 / 2048


def problems(instructions: float, case: CompileCase = CASE) -> list[str]:
    """The problems of a case with an activation and this many instructions an output element."""
    figures = {"spill_stores": 0, "spill_loads": 0, "shared_memory": 0, "tensor": {"wgmma m64n64k16": 8}}
    case = replace(case, constants={**case.constants, "ACTIVATION": "gelu"})
    return list(_problems(case, SM_90, {**figures, "element_instructions": instructions}))


def test_instructions_after_the_loop_are_counted_for_each_element_of_a_thread() -> None:
    figures = _issue_bound(CASE, SM_90, STEP, epilogue=640)
    assert figures["element_instructions"] == 640 / (128 * 64 / 128)
    neighbours = _issue_bound(replace(CASE, results=4), SM_90, STEP, epilogue=640)
    assert neighbours["element_instructions"] == 640 / (4 * 128 * 64 / 128)


def test_the_ceiling_counts_them_over_the_steps_of_a_program() -> None:
    assert _issue_bound(CASE, SM_90, STEP, 640)["ceiling"] == 1
    short = _issue_bound(replace(CASE, steps=1.25), SM_90, STEP, 640)
    assert short["ceiling"] == pytest.approx(TENSOR_CYCLES / (100 + 640 / 1.25), abs=1e-3)
    both = _issue_bound(replace(CASE, steps=1.25, results=2), SM_90, STEP, 640)
    assert both["ceiling"] == pytest.approx(TENSOR_CYCLES / (100 + 640 / 2.5), abs=1e-3)


def test_a_long_epilogue_is_a_problem() -> None:
    assert problems(MOST_INSTRUCTIONS) == []
    (problem,) = problems(36.3)
    assert problem == "issues 36.3 instructions an output element after its loop, more than 26"


def test_small_programs_and_float32_may_issue_more() -> None:
    assert problems(36.3, product_case("small", (64, 16, 64))) == []
    assert problems(36.3, product_case("fp32", (128, 64, 64), kind="*fp32")) == []
