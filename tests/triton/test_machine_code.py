"""Loops and tensor-core instructions in the text of compilers and disassemblers."""

from __future__ import annotations

from sparsebert_kernels.cuda.aot.machine_code import (
    Loop,
    amd_loop,
    nvidia_epilogue,
    nvidia_loop,
    shared_buffers,
    tensor_instructions,
)

SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDGSTS.E.128 [R2], desc[UR4][R4.64] ;
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0050*/                   FADD R1, R1, R2 ;
        /*0060*/              @!P1 BRA `(.L_x_0) ;
        /*0070*/                   BRA `(.L_x_2);
.L_x_2:
        /*0080*/                   EXIT ;
"""

AMD = """
\ts_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:                               ; %loop
\t; a comment
\tds_read_b128 v[0:3], v4
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
"""


def test_the_main_loop_is_the_one_with_tensor_core_instructions():
    assert nvidia_loop(SASS) == Loop(4, {(64, 64, 16): 2})
    assert amd_loop(AMD) == Loop(3, {(32, 32, 8): 1})


def test_without_such_a_loop_there_is_none():
    assert nvidia_loop(SASS.replace("HGMMA", "FFMA")) is None
    assert amd_loop("") is None


def test_the_epilogue_is_what_follows_the_last_product():
    assert nvidia_epilogue(SASS) == 5
    assert nvidia_epilogue(SASS.replace("HGMMA", "FFMA")) is None


def test_four_warps_issue_a_warp_group_instruction_together_and_other_ones_each_for_itself():
    assert Loop(10, {(64, 64, 16): 2}).products(8, (128, 64), half=True) == 2 * 2 * 64 * 64 * 16
    assert Loop(10, {(16, 8, 16): 3}).products(8, (128, 64), half=True) == 8 * 3 * 16 * 8 * 16


def test_instructions_whose_shape_is_not_in_the_text_are_as_large_as_they_can_be():
    sass = SASS.replace("HGMMA.64x64x16.F32.BF16 R24", "UTCHMMA gdesc[UR4]")
    assert nvidia_loop(sass) == Loop(4, {(): 2})
    assert Loop(4, {(): 2}).products(4, (256, 64), half=True) == 2 * 128 * 64 * 16
    assert Loop(4, {(): 2}).products(4, (64, 64), half=False) == 2 * 64 * 64 * 8


def test_instructions_are_counted_by_kind_and_shape():
    ptx = """
    wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}, %rd1, %rd2;
    wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}, %rd1, %rd2;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1};
    """
    assert tensor_instructions(ptx) == {"mma.sync m16n8k16": 1, "wgmma m64n128k16": 2}
    assert tensor_instructions(AMD) == {"mfma 32x32x8": 1}
    assert tensor_instructions("fma.rn.f32 %f1, %f2, %f3, %f4;") == {}


def test_the_shape_of_tcgen05_is_read_from_tritons_code():
    ptx = "tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd1, %rd2, %r3, %p1;"
    ttgir = (
        "ttng.tc_gen5_mma %a, %b, %c {is_async} : !ttg.memdesc<128x64xbf16, #shared, #smem>, "
        "!ttg.memdesc<64x32xbf16, #shared1, #smem>, !ttg.memdesc<128x32xf32, #tmem>"
    )
    assert tensor_instructions(ptx, ttgir) == {"tcgen05 m128n32k64": 1}
    assert tensor_instructions(ptx) == {"tcgen05 of unknown shape": 1}


def test_the_operand_with_fewest_buffers_counts():
    pipelined = "ttg.local_alloc : () -> !ttg.memdesc<{}x128x64xbf16, #shared, #smem, mutable>"
    barriers = "ttg.local_alloc : () -> !ttg.memdesc<2x1xi64, #shared, #smem, mutable>"
    assert shared_buffers("\n".join([pipelined.format(4), pipelined.format(3), barriers])) == 3
    assert shared_buffers("ttg.local_alloc %x : (tensor<128x64xbf16>) -> !ttg.memdesc<128x64xbf16>") == 1
    assert shared_buffers("") is None
