"""Look inside: follow one layer of a model from torch to Relax, to a kernel, to the machine's instructions.

    python tutorials/02_look_inside.py [MODEL]      # MODEL: a Hugging Face folder or GGUF file; by default a tiny random Llama

`cupola.compile` does all of this in one call. Here we take its steps one by one, as compiler/driver.py does, and look at
what each leaves behind. Nothing in them knows this model: there is no code for Llama anywhere.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import transformers
from torch import fx
from tvm import IRModule

import cupola
from cupola.compiler.frontend.state import kv_layout
from cupola.compiler.frontend.trace import trace
from cupola.compiler.frontend.translate import translate
from cupola.compiler.pipeline import import_passes, pipeline, run_passes
from cupola.compiler.sources import open_source
from cupola.compiler.variants import lay_out_state
from cupola.models import find_family
from cupola.passes.schemes import SCHEMES
from cupola.targets.native.interface import compile_kernels
from cupola.targets.registry import get_target

# --- How things are printed; skip this at first ------------------------------------------------------------------------

FIRST_LAYER = r"[._](layers|h|blocks)[._]0[._]"
SHORTER = (  # what TVM prints in full and a reader does not need
    (r", out_dtype=\"\w+\"|, assume_inbound=\w+|, axes=None|model_layers_0_|(?<=\d)\.0(?=[,)])", ""),
    (r"R\.call_dps_packed\(\"(cupola\.\w+)\", \((.*)\)\)", r"\1(\2)"),
    (r"R\.(?:const|str|shape)\(([^()]*?)(?:, \"\w+\")?\)|T\.float64\((.*?)\)", r"\1\2"),
    (r"metadata\[\"ir.GenericConst\"\]\[\d+\]", "<constant>"),
)


def title(number: int, text: str) -> None:
    """Begins a section of the output."""
    print(f"\n--- {number}. {text} ---\n")


def show(lines: list[str]) -> None:
    """Prints lines, indented and cut to the width of a screen."""
    print("\n".join(f"    {line if len(line) <= 130 else line[:129] + '…'}" for line in map(str.expandtabs, lines)))


def statements(mod: IRModule) -> list[str]:
    """The statements of `forward` as TVM prints them, shortened, with the type of the result in brackets."""
    found = []
    for line in mod.script(show_meta=False).splitlines():
        if not (line.startswith(" " * 12) and " = " in line):
            continue
        name, _, value = line.strip().partition(" = ")
        out = re.search(r"(?:, out_ty=|: )R\.Tensor\(\((.*?),?\), dtype=\"(\w+)\"\)", line)
        value = re.sub(r", out_ty=R\.Tensor\(.*?\"\)", "", value)
        for pattern, replacement in SHORTER:
            value = re.sub(pattern, replacement, value)
        value = re.sub(r"\d\.\d{5,}(e-\d+)?", lambda number: f"{float(number[0]):.4g}", value)
        found.append(f"{name.partition(':')[0]} [{out[1] if out else ''}] = {value}")
    return found


def of_first_layer(graph: fx.Graph) -> list[str]:
    """The operations of a torch graph that stand in its first layer, a line for each visit of a module, and attention alone."""
    found: list[tuple[str, list[str]]] = []
    for node in graph.nodes:
        modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        if node.op == "call_function" and modules and re.search(FIRST_LAYER, f"{modules[-1]}."):
            module = re.split(FIRST_LAYER, f"{modules[-1]}.")[-1].rstrip(".") or "the layer itself"
            operation = ".".join(str(node.target).split(".")[:2]).removeprefix("aten.")
            if not found or found[-1][0] != module or "cupola.attention" in (operation, found[-1][1][-1]):
                found.append((module, []))
            found[-1][1].append(operation)
    return [f"{module:26} {' '.join(operations)}" for module, operations in found]


def innermost_loops(text: str) -> list[list[str]]:
    """The loops of a TIR function that hold no other loop and read a weight."""
    loops: list[list[str]] = []
    for line in text.splitlines():
        if re.match(r"\s+for .* in range", line):
            loops.append([])
        if loops:
            loops[-1].append(line)
    inside = ([line for line in loop if _indent(line) > _indent(loop[0]) or line is loop[0]] for loop in loops)
    return [loop for loop in inside if any("weight[" in line for line in loop)]


def hot_loops(assembly: str) -> list[list[str]]:
    """The loops of a function in assembly that multiply vectors: all that lies between a label and a jump back to it."""
    lines, labels, loops = assembly.splitlines(), {}, []
    for number, line in enumerate(lines):
        label, jump = re.match(r"(\.L\w+):", line), re.match(r"\s+(?:j\w+|b\S*|cb\w+)\s+(?:.*,\s*)?(\.L\w+)", line)
        if label:
            labels[label[1]] = number
        elif jump and jump[1] in labels:
            loops.append(lines[labels[jump[1]] : number + 1])
    return [loop for loop in loops if any(re.search(r"fmadd|fmla|mulps", line) for line in loop)]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


# --- The model ---------------------------------------------------------------------------------------------------------

work = tempfile.TemporaryDirectory()
transformers.logging.disable_progress_bar()


def tiny_model() -> Path:
    """Writes a random Llama of one layer, as transformers would."""
    family = find_family("llama")
    assert family is not None
    config = transformers.AutoConfig.for_model(family.model_type, **{**family.tiny, "num_hidden_layers": 1})
    folder = Path(work.name) / "model"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


CONTEXT = 256  # the tokens that a sequence may have
model = sys.argv[1] if len(sys.argv) > 1 else tiny_model()

# --- 1. Torch ----------------------------------------------------------------------------------------------------------
#
# transformers builds the model from its configuration, without weights: its tensors have shapes and no values, and take no
# memory. torch.export runs it once with symbols in place of numbers and writes down every operation. The token count stays a
# symbol, n. Attention is the exception: it becomes one opaque operation, cupola::attention, for we will compute it over
# the pages of a cache that the traced model knows nothing of.

source = open_source(model)
traced = trace(source.config, source.name, CONTEXT)
title(1, "What torch.export saw of the first layer")
show(of_first_layer(traced.exported.graph))

# --- 2. Relax ----------------------------------------------------------------------------------------------------------
#
# TVM's importer turns each torch operation into one of Relax, the language of TVM's graphs. A module in Relax is a
# function, `forward`, of plain statements: a name, a type, a call. A shape may hold symbols.

imported = translate(traced, source.name)
lines = statements(imported)
norm = next(number for number, line in enumerate(lines) if re.search("layernorm|norm_weight|ln_1", line)) - 6
title(2, f"The same in Relax: {len(lines)} statements, of which these are the first norm and the projection of queries")
show(lines[max(norm, 0) :][:11])

# --- 3. Passes ---------------------------------------------------------------------------------------------------------
#
# Passes rewrite the module, each a small file in passes/ that says before → after in its first lines. They drop the batch
# axis of 1, recognize what the model spells out (a norm takes seven statements above), join the projections of queries,
# keys and values into one, move additions into the linear layers before them, and give attention the pages of the cache.
# This model's first layer is its last: it picks the rows that want logits (r of n) after attention, and goes on with those.
# pipeline() lists the passes in their order; the last one, lower_ops, comes in the next step.

target = get_target("cpu")
flat = run_passes(imported, import_passes())
kv = lay_out_state(kv_layout(flat, "float32", block_size=16, file=source.name), [target])
*recognize, lower = pipeline(target, kv, SCHEMES["f32"])
recognized = run_passes(flat, recognize)
lines = statements(recognized)
first = next(number for number, line in enumerate(lines) if "norm" in line)
title(3, f"After {len(import_passes() + recognize)} passes: {len(lines)} statements, most of them the first layer's")
show(lines[first : first + 17])

# --- 4. Kernels --------------------------------------------------------------------------------------------------------
#
# A target brings kernels, as rules that each take the calls they can compute. lower_ops asks them in order. What comes
# back is call_tir: call this function, written in TIR, TVM's language of loops. Weights are reordered for it, in panels
# of 32 columns that lie in memory as the loop reads them; statements on weights alone run once, when the artifact is written.

lowered = run_passes(recognized, [lower])
lines = statements(lowered)
first = next(number for number, line in enumerate(lines) if "norm" in line)
title(4, f"After lower_ops for {target.spec.name}: every operation is a call of a kernel")
show([line for line in lines[first:] if "call_tir" in line][:8])

# --- 5. TIR ------------------------------------------------------------------------------------------------------------
#
# Here is the linear kernel of queries, keys and values. It runs panels in parallel and works on several rows at a time,
# so that a weight is read once for all of them; below is its innermost loop for a single row, which is what
# generating a token runs: a piece of the weight times one number of x, added up in registers.

name, kernel = next((var.name_hint, func) for var, func in lowered.functions_items() if var.name_hint.startswith("linear"))
script = kernel.script()
title(5, f"The kernel {name} in TIR: its beginning, and its innermost loop for one row")
text = script.splitlines()
begin = next(number for number, line in enumerate(text) if "def " in line)
show([*text[begin : begin + 6], "    …", *min(reversed(innermost_loops(script)), key=len)])

# --- 6. Instructions ---------------------------------------------------------------------------------------------------
#
# LLVM turns TIR into machine code. The same loop again: vmovups loads a vector, vbroadcastss repeats one number in all
# lanes, vfmadd multiplies and adds. Registers named zmm hold 16 numbers of 32 bits (AVX-512), ymm 8 (AVX2), xmm 4.

library = compile_kernels(IRModule({name: kernel}), target)
title(6, f"The same loop in assembly, for {target.spec.name}")
show(min(reversed(hot_loops(library.inspect_source("asm"))), key=len))

# --- 7. The artifact ---------------------------------------------------------------------------------------------------
#
# All of that, and the reordered weights, is what `cupola.compile` writes to a folder. Its manifest is the only thing that
# the runtime knows about a model. `cupola inspect FOLDER` shows this and more.

manifest = cupola.compile(model, out=Path(work.name) / "artifact", quant="f32", context=CONTEXT).manifest
title(7, "The artifact, as its manifest describes it")
for file in manifest.files:
    print(f"    {file.name:26} {file.num_bytes:>10,} bytes")
shown = [weight for weight in manifest.weights if re.search(FIRST_LAYER, weight.name)]
print(f"\n    {len(manifest.weights)} weights; of the first layer:")
for weight in shown:
    print(f"        {re.split(FIRST_LAYER, weight.name)[-1]:56} {weight.dtype} {list(weight.shape)}")
print(f"\n    forward takes {', '.join(spec.name for spec in manifest.function('forward').inputs[: -len(manifest.weights)])},")
print(f"    then the weights, and gives logits {list(manifest.function('forward').outputs[0].shape)}.")
print(f"    A block of the K/V cache holds {manifest.kv.block_size} tokens in {manifest.kv.bytes_per_block:,} bytes.")

# To see a whole compile in this detail, set CUPOLA_DEBUG=3: the module after every pass lands in numbered files, in a folder
# beside the artifact whose name ends in .ir. With CUPOLA_DEBUG=4 the assembly of all kernels does too.
work.cleanup()
