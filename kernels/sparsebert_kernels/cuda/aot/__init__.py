"""Ahead-of-time compilation of the Triton kernels, without a GPU.

    python -m sparsebert_kernels.cuda.aot --target sm_90

compiles every kernel configuration for a target and reports the figures that decide its speed: registers and
spills, shared memory, the tensor-core instruction, pipeline depth, and the instructions that the main loop
issues for its products. The compilers and disassemblers come with Triton.

targets       the GPUs to compile for
compile_case  one kernel in one configuration, recorded from its launcher
compiler      compile a case for a target
machine_code  read the text of compilers and disassemblers
command       the command line
"""
