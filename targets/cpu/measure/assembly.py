"""Counts the instructions of a kernel's inner loops in the assembly that LLVM wrote.

A loop is a strongly connected part of a function's flow graph; it is innermost if nothing cyclic is left once its entry is
taken away. Instructions are put in classes by mnemonic, for x86-64 (AT&T syntax) and AArch64.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx

# "move" copies between registers and makes constants. What an instruction reads from memory or writes there counts besides, as does
# a "spill": a fixed place on the stack.
CLASSES = ("dot", "fma", "multiply", "arithmetic", "convert", "shuffle", "broadcast", "load", "store", "spill", "move", "scalar",
           "call", "branch")  # fmt: skip


@dataclass(frozen=True)
class Syntax:
    """How one architecture's assembly reads. Patterns match from the start of `mnemonic operands`.

    Attributes:
        comment: what begins one.
        vector: instructions that mention a vector register.
        scalar: those of them that work on one element.
        jump: jumps; group 1 is the label, if it is known.
        ends: instructions that the next one does not follow.
        call: calls.
        classes: of vector instructions; the first match wins, and what none matches is arithmetic.
        spreads, reads, writes: arithmetic on an operand in memory: spread to all lanes, read, written.
        stack: a fixed place on the stack; `frame_stack` the same in a function that sets up a frame pointer, as `frame` does.
        stack_size: an instruction of a prologue that takes group 1 or 2 bytes of stack.
    """

    comment: str
    vector: re.Pattern[str]
    scalar: re.Pattern[str]
    jump: re.Pattern[str]
    ends: re.Pattern[str]
    call: re.Pattern[str]
    classes: tuple[tuple[str, re.Pattern[str]], ...]
    spreads: re.Pattern[str]
    reads: re.Pattern[str]
    writes: re.Pattern[str]
    stack: re.Pattern[str]
    frame_stack: re.Pattern[str]
    frame: re.Pattern[str]
    stack_size: re.Pattern[str]


def _classes(table: dict[str, str]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((name, re.compile(pattern)) for name, pattern in table.items())


_NEVER = re.compile(r"(?!)")
_X86_MOVE = r"v?mov(?:[au]p[sd]|dq[au]\d*|[lh]p[sd]|nt\w+|[dq]) "
_X86 = Syntax(
    comment="#",
    vector=re.compile(r".*%[txyz]mm"),
    scalar=re.compile(
        r"v?(?:add|sub|mul|div|min|max|sqrt|cmp\w*|mov|fn?m(?:add|sub)\d+|cvt\w+2|round|rndscale|rcp|u?comi)s[sdhi]\w* "
        r"|v?mov[dq] "
    ),
    jump=re.compile(r"j\w+ (\.L\w+)?"),
    ends=re.compile(r"(?:jmp|ret|ud2)"),
    call=re.compile(r"call"),
    classes=_classes(
        {
            "dot": r"(?:v?(?:pdp\w+|dpbf16ps|pmaddubsw|pmaddwd)|tdp\w+) ",
            "fma": r"vfn?m(?:add|sub)",
            "multiply": r"v?(?:mulp[sdh]|pmul\w+) ",
            "convert": r"v?(?:p?cvt|pmov[sz]x|pmov[usdqbw]+ )",
            "broadcast": r"v?(?:p?broadcast\w+ |shufps \$0, (%\w+), \1)",
            "store": rf"(?:{_X86_MOVE}|vextract|v?p?scatter|tilestored).*\)(?: \{{%k\d\}})?$",
            "load": rf"(?:{_X86_MOVE}|v?p?gather|v?lddqu|tileload\w+)[^,]*\(",
            "shuffle": r"v?(?:p?shuf|p?unpck|p?perm|p?align|p?insr|pextr|insert|extract|pack|movs[hl]dup|movddup|mov(?:lh|hl)ps)",
            "move": rf"(?:{_X86_MOVE}|tilezero |v?p?xor(?:p[sd]|[dq])? (%\w+), \1|vpternlogd \$255)",
        }
    ),
    spreads=re.compile(r".*\{1to\d+\}"),
    reads=re.compile(r".*\)"),
    writes=re.compile(r".*\)(?: \{%k\d\})?$"),
    stack=re.compile(r".*[ ,]-?\d*\(%rsp\)"),
    frame_stack=re.compile(r".*[ ,]-?\d*\(%r[sb]p\)"),
    frame=re.compile(r"movq %rsp, %rbp"),
    stack_size=re.compile(r"subq \$(\d+), %rsp()"),
)
_ARM = Syntax(
    comment="//",
    vector=re.compile(r".*(?:\bv\d+\.|\bq\d+\b)"),
    scalar=re.compile(r"[us]mov "),
    jump=re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z|br) (?:.*, )?(\.L\w+)?"),
    ends=re.compile(r"(?:b|br|ret|brk|udf)(?: |$)"),
    call=re.compile(r"blr? "),
    classes=_classes(
        {
            "dot": r"(?:[su]{1,2}dot|[su]{1,2}mmla) ",
            "fma": r"(?:f?ml[as]l?2?|[su]ml[as]l2?) ",
            "multiply": r"(?:f?mul|fmulx|[su]mull2?|sqr?dmulh) ",
            "convert": r"(?:[su]cvtf|fcvt\w+|[su]?q?xtu?n2?|[su]xtl2?|[su]shll2?|shrn2?) ",
            "broadcast": r"(?:dup|ld\dr) ",
            "shuffle": r"(?:ext|zip\d|uzp\d|trn\d|tb[lx]|rev\d+|ins|mov v\d+\.\w\[)",
            "load": r"(?:ldu?r|ldn?p|ld\d) ",
            "store": r"(?:stu?r|stn?p|st\d) ",
            "move": r"(?:mov|movi|mvni|fmov) ",
        }
    ),
    spreads=_NEVER,
    reads=_NEVER,
    writes=_NEVER,
    stack=re.compile(r".*\[sp(?:, #\d+)?\]"),
    frame_stack=re.compile(r".*\[(?:sp|x29)(?:, #-?\d+)?\]"),
    frame=re.compile(r"(?:mov|add) x29, sp"),
    stack_size=re.compile(r"sub sp, sp, #(\d+)()|stp .*\[sp, #-(\d+)\]!"),
)
SYNTAXES = {"x86_64": _X86, "aarch64": _ARM}


@dataclass(frozen=True)
class Function:
    """A function's innermost loops, in the order of their code, each with its instructions by class."""

    name: str
    stack_bytes: int
    loops: tuple[Counter[str], ...]


def functions(assembly: str, architecture: str) -> list[Function]:
    """A module's functions but those whose names begin with `__`: checks of arguments, and TVM's own."""
    parts = re.split(r"^\s*\.type\s+(\S+),\s*[@%]function$", assembly, flags=re.MULTILINE)
    bodies = zip(parts[1::2], parts[2::2], strict=True)
    return [_function(name, body, SYNTAXES[architecture]) for name, body in bodies if not name.startswith("__")]


def _function(name: str, body: str, syntax: Syntax) -> Function:
    blocks = _blocks(body, syntax)
    start = [instruction for _, block in blocks for instruction in block][:40]
    stack = syntax.frame_stack if any(syntax.frame.match(instruction) for instruction in start) else syntax.stack
    sizes = [int(size) for instruction in start if (found := syntax.stack_size.match(instruction)) for size in found.groups() if size]
    loops = [[instruction for i in loop for instruction in blocks[i][1]] for loop in _innermost(_flow(blocks, syntax))]
    return Function(
        name, sum(sizes), tuple(Counter(c for instruction in loop for c in classify(instruction, syntax, stack)) for loop in loops)
    )


def _blocks(body: str, syntax: Syntax) -> list[tuple[str, list[str]]]:
    """The basic blocks in order: label ("" if none jumps there) and instructions, the last of which may jump."""
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in body.partition("\n.Lfunc_end")[0].splitlines():
        if found := re.match(r"(\.LBB\w+):", line):
            blocks.append((found[1], []))
        elif found := re.match(rf"\t(?:{{\w+}}\s*)?([a-z].*?)(?:\s{syntax.comment}\s|$)", line):  # {vex} may stand before it
            instruction = " ".join(found[1].split())
            blocks[-1][1].append(instruction)
            if syntax.jump.match(instruction) or syntax.ends.match(instruction):
                blocks.append(("", []))
    return blocks


def _flow(blocks: Sequence[tuple[str, list[str]]], syntax: Syntax) -> networkx.DiGraph:
    """Which block may follow which."""
    labels = {label: index for index, (label, _) in enumerate(blocks)}
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(blocks)))
    for index, (_, instructions) in enumerate(blocks):
        last = instructions[-1] if instructions else ""
        if not syntax.ends.match(last) and index + 1 < len(blocks):
            graph.add_edge(index, index + 1)
        jump = syntax.jump.match(last)
        if jump and jump[1] in labels:
            graph.add_edge(index, labels[jump[1]])
    return graph


def _innermost(flow: networkx.DiGraph) -> list[list[int]]:
    """The blocks of each innermost loop."""
    found, pending = [], _cycles(flow)
    while pending:
        cycle = pending.pop()
        entry = min((block for block in cycle if any(before not in cycle for before in flow.predecessors(block))), default=min(cycle))
        inner = _cycles(flow.subgraph(cycle - {entry}))
        pending += inner
        found += [] if inner else [sorted(cycle)]
    return sorted(found)


def _cycles(flow: networkx.DiGraph) -> list[set[int]]:
    """The strongly connected parts that hold a cycle."""
    parts = networkx.strongly_connected_components(flow)
    return [part for part in parts if len(part) > 1 or any(flow.has_edge(block, block) for block in part)]


def classify(instruction: str, syntax: Syntax, stack: re.Pattern[str]) -> Iterator[str]:
    """The classes that an instruction counts in."""
    if stack.match(instruction):
        yield "spill"
    if syntax.call.match(instruction):
        yield "call"
    elif syntax.jump.match(instruction) or syntax.ends.match(instruction):
        yield "branch"
    elif not syntax.vector.match(instruction) or syntax.scalar.match(instruction):
        yield "scalar"
    else:
        name = next((name for name, pattern in syntax.classes if pattern.match(instruction)), "arithmetic")
        yield name
        if name not in ("load", "store", "broadcast"):
            operand = (("broadcast", syntax.spreads), ("store", syntax.writes), ("load", syntax.reads))
            yield from [name for name, pattern in operand if pattern.match(instruction)][:1]
