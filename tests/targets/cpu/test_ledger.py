"""The ledger: what kernels cost may change only together with their lines. And the reading of machine code that it stands on."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from cupola.targets.cpu.isa import ISAS
from cupola.targets.cpu.kernels import cpu_target
from cupola.targets.cpu.measure import ledger
from cupola.targets.cpu.measure.assembly import SYNTAXES, classify, functions
from cupola.targets.ledger import differences, read_ledger
from cupola.targets.testing.case import SMOLLM2
from cupola.targets.testing.catalogue import LinearKernel

ISA = {isa.name: isa for isa in ISAS}


@pytest.mark.by_turns
@pytest.mark.parametrize("isa", ISAS, ids=ISA)
def test_kernels_cost_what_the_ledger_says(isa):
    recorded = {key: figures for key, figures in read_ledger(ledger.LEDGER, ledger.COLUMN).items() if key[1] == isa.name}
    changed = differences(recorded, ledger.make_ledger([isa]))
    assert not changed, "\n".join(["kernels changed; if that is meant, `make ledger` and commit it:", *changed])


def test_the_ledger_has_all_instruction_sets():
    assert {isa for _, isa in read_ledger(ledger.LEDGER, ledger.COLUMN)} == {isa.name for isa in ISAS if isa.bf16_dot or not isa.alike}


def test_a_spoiled_kernel_is_worse_than_its_line():
    isa = ISA["avx2"]
    case = LinearKernel("f32")(SMOLLM2, cpu_target(isa))
    key = (case.name, isa.name)
    before = {key: read_ledger(ledger.LEDGER, ledger.COLUMN)[key]}
    spoiled = dataclasses.replace(isa, num_registers=64)  # accumulators for registers that AVX2 does not have
    [change] = differences(before, {key: ledger.measure(case, spoiled)})
    assert change.startswith(("worse: linear 1536x576 f32, avx2: ", "mixed: linear 1536x576 f32, avx2: "))
    assert "spill 0 → " in change


NESTED = """
	.type	nested,@function
nested:
	pushq	%rbx
	subq	$72, %rsp
	testq	%rsi, %rsi
	je	.LBB0_5
.LBB0_1:                                # the outer loop; rotated, so that its test stands first
	xorl	%eax, %eax
	jmp	.LBB0_3
.LBB0_2:
	vfmadd231ps	(%rdi){1to16}, %zmm0, %zmm1 # broadcast
	{vex}	vpdpbusd	%ymm1, %ymm2, %ymm3
	vmovups	%zmm1, 64(%rsp)
.LBB0_3:
	vmovups	(%rdi,%rax,4), %zmm0
	decq	%rax
	jne	.LBB0_2
	vmovups	%zmm0, (%rsi)
	jmp	.LBB0_1
.LBB0_5:
	vmovaps	%zmm2, %zmm3
	jmp	.LBB0_5
.Lfunc_end0:
	.type	__helper,@function
__helper:
.LBB1_1:
	jmp	.LBB1_1
"""


def test_innermost_loops_are_found():
    [function] = functions(NESTED, "x86_64")
    assert (function.name, function.stack_bytes) == ("nested", 72)
    inner = Counter({"dot": 1, "fma": 1, "broadcast": 1, "store": 1, "spill": 1, "load": 1, "scalar": 1, "branch": 1})
    assert function.loops == (inner, Counter({"move": 1, "branch": 1}))


@pytest.mark.parametrize(
    ("architecture", "instruction", "expected"),
    [
        ("x86_64", "vpdpbusd 64(%rax), %zmm1, %zmm2", "dot load"),
        ("x86_64", "vpmaddubsw %ymm1, %ymm2, %ymm3", "dot"),
        ("x86_64", "vdpbf16ps (%rax){1to16}, %zmm2, %zmm3", "dot broadcast"),
        ("x86_64", "vbroadcastss (%rax,%rcx,4), %ymm0", "broadcast"),
        ("x86_64", "shufps $0, %xmm0, %xmm0", "broadcast"),
        ("x86_64", "shufps $78, %xmm0, %xmm0", "shuffle"),
        ("x86_64", "vmovss (%rax), %xmm0", "scalar"),
        ("x86_64", "vfmadd231ss (%rax), %xmm0, %xmm1", "scalar"),
        ("x86_64", "vpabsd %zmm0, %zmm1", "arithmetic"),
        ("x86_64", "vmulps -8(%rsp), %ymm0, %ymm1", "spill multiply load"),
        ("x86_64", "vmulps 8(%rsp,%rax,4), %ymm0, %ymm1", "multiply load"),
        ("x86_64", "vcvtps2ph $4, %zmm0, (%rax)", "convert store"),
        ("x86_64", "vpmovzxbw (%rax), %zmm0", "convert load"),
        ("x86_64", "vmovdqu8 %zmm0, (%rax,%rcx) {%k1}", "store"),
        ("x86_64", "vpxor %xmm3, %xmm3, %xmm3", "move"),
        ("x86_64", "tileloadd (%rax,%rcx), %tmm1", "load"),
        ("x86_64", "tdpbssd %tmm2, %tmm1, %tmm0", "dot"),
        ("x86_64", "tilestored %tmm0, (%rax,%rcx)", "store"),
        ("x86_64", "callq *%rax", "call"),
        ("aarch64", "sdot v0.4s, v1.16b, v2.4b[1]", "dot"),
        ("aarch64", "fmla v0.4s, v1.4s, v2.s[0]", "fma"),
        ("aarch64", "ldp q0, q1, [sp, #32]", "spill load"),
        ("aarch64", "ldr q0, [sp, x8]", "load"),
        ("aarch64", "str q0, [x8], #16", "store"),
        ("aarch64", "ld1r { v0.4s }, [x8], #4", "broadcast"),
        ("aarch64", "mov v0.s[1], v1.s[0]", "shuffle"),
        ("aarch64", "mov v0.16b, v1.16b", "move"),
        ("aarch64", "add x8, x8, #16", "scalar"),
        ("aarch64", "b.ne .LBB0_1", "branch"),
        ("aarch64", "bic v0.16b, v1.16b, v2.16b", "arithmetic"),
    ],
)
def test_instructions_have_their_classes(architecture, instruction, expected):
    syntax = SYNTAXES[architecture]
    assert list(classify(instruction, syntax, syntax.stack)) == expected.split()
