"""A first answer: compile a model, and let it speak.

    python tutorials/01_first_answer.py [ARTIFACT]      # ARTIFACT: the folder of a model that you have compiled already

The model is SmolLM2-135M-Instruct, small enough for any laptop. It knows a little about everything, and is often wrong.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import cupola
from cupola.runtime.environment import cache_folder

# --- 1. Compile --------------------------------------------------------------------------------------------------------
#
# Compiling turns a model into an artifact: a folder with a library of machine code for this computer, the weights in the
# order in which that code reads them, the tokenizer, and a manifest that describes it all. It is done once. An artifact
# needs neither torch nor transformers to run, and you may copy it to another computer with the same kind of processor.
#
# "smollm2" is a built-in name; the folder of a Hugging Face checkpoint, a GGUF file or a hub id would do as well.

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else cache_folder() / "tutorials" / "smollm2"
if not folder.exists():
    print(f"Compiling smollm2 into {folder}; this takes a minute, once.", flush=True)
    cupola.compile("smollm2", target="cpu", quant="f32", out=folder, context=2048)

# --- 2. Load -----------------------------------------------------------------------------------------------------------
#
# An LLM is an artifact ready to generate. It checks the artifact's files against the manifest, maps the weights into
# memory and reserves room for K/V, what attention remembers of each token: here 256 MB, shared by all requests.

llm = cupola.LLM(folder, kv_memory="256MB")
print(f"Loaded {llm.artifact.manifest.source.name}, compiled for {llm.artifact.manifest.libraries[0].target.name}.")

# --- 3. Chat -----------------------------------------------------------------------------------------------------------
#
# A chat model was trained on conversations in a certain form, which its chat template writes. Temperature 0 always takes
# the most likely token, so the answer is the same each time.

question = [{"role": "user", "content": "What is the capital of Japan?"}]
careful = cupola.SamplingParams(temperature=0, max_tokens=48)

[result] = llm.chat(question, careful)
answer = result.outputs[0]  # a request may want several completions; this one has one
print("\nQuestion:", question[0]["content"])
print("Answer:", answer.text)
print(f"    {len(result.prompt_token_ids)} tokens in, {len(answer.token_ids)} out; it ended because of: {answer.finish_reason}")

# --- 4. Stream ---------------------------------------------------------------------------------------------------------
#
# The same, piece by piece, as it is generated. `stream` continues a plain text; `stream_chat` answers a conversation.

print("\nStreamed: ", end="")
for piece in llm.stream_chat([{"role": "user", "content": "Name three colors."}], careful):
    print(piece, end="", flush=True)
print()

# --- 5. Several prompts at once ----------------------------------------------------------------------------------------
#
# A step of the model computes one token for every running request, and reads the weights, which is most
# of the work, once for several of them. Prompts are texts or lists of token ids, of any lengths. What else is in the batch
# does not change an answer.

prompts = ["The sun rises in the", "The opposite of cold is", "Once upon a time, there was"]
short = cupola.SamplingParams(temperature=0, max_tokens=12, stop="\n")  # a stop string ends the answer, and is not part of it
print("\nAt once:")
for prompt, output in zip(prompts, llm.generate(prompts, short), strict=True):
    print(f"    {prompt!r} →{output.outputs[0].text!r}")

# --- 6. Chance ---------------------------------------------------------------------------------------------------------
#
# At a temperature above 0 the next token is drawn at random: the higher, the more daring. top_p leaves out the unlikely
# ones; a seed makes the draw repeatable. n=3 asks for three completions, which share the prompt's computation.

daring = cupola.SamplingParams(temperature=0.9, top_p=0.95, seed=7, n=3, max_tokens=12)
print("\nThree ways to go on:")
for completion in llm.generate("The robot opened the door and", daring)[0].outputs:
    print(f"    …{completion.text!r}")

# --- 7. How sure is it? ------------------------------------------------------------------------------------------------
#
# With logprobs=3 each token comes with its log-probability and those of the three most likely ones. exp() makes
# probabilities of them.

[sure] = llm.generate("The capital of France is", cupola.SamplingParams(temperature=0, max_tokens=1, logprobs=3))
print("\nAfter 'The capital of France is':")
for entry in (sure.outputs[0].logprobs or [])[0].values():
    print(f"    {math.exp(entry.logprob):6.1%}  {entry.decoded_token!r}")

# And if you want the numbers themselves: logits of the whole vocabulary, after each token of a prompt.
logits = llm.logits(llm.tokenize("The capital of France is"))
print(f"\nThe logits are an array of {logits.shape[0]} tokens × {logits.shape[1]} words of the vocabulary.")
