"""Holds the memory that a model takes against its budget: `python benchmarks/memory ARTIFACT [MEGABYTES…]` prints a table.

Each budget has a process of its own, which fills a step and the K/V that it is left with prompts, and then decodes with penalties and
log-probabilities. The peak is the system's (VmHWM).
"""

from __future__ import annotations

import subprocess
import sys

BUDGETS = (150, 185, 200, 230, 300, 400, 500, 700, 1000, 2000)
ONE = """
import sys
import cupola
artifact, budget = sys.argv[1], int(sys.argv[2])
try:
    llm = cupola.LLM(artifact, memory_budget=budget, seed=1)
except cupola.OptionError as error:
    print(f"refused: {error}")
    sys.exit()
config, length = llm.engine.config, llm.engine.validator.max_length
room = min(llm.engine.executor.num_blocks) * llm.artifact.manifest.kv.block_size
each = max(8, min(length - 40, room // config.max_num_seqs - 48, 4000 // config.max_num_seqs))
prompts = [[(7 * i + 13 * j) % 100 + 10 for i in range(each)] for j in range(config.max_num_seqs)]
params = cupola.SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.1, max_tokens=24, ignore_eos=True, logprobs=5)
llm.generate(prompts, params)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"{peak / 1e6:.0f} MB, {'within it' if peak <= budget else 'TOO MUCH'}: {llm.notes[0].partition(' leaves ')[2]}")
sys.exit(peak > budget)
"""


def main(artifact: str, *megabytes: str) -> int:
    """Prints a line for each budget; 1 if one was not kept."""
    worst = 0
    for budget in map(int, megabytes or BUDGETS):
        done = subprocess.run([sys.executable, "-c", ONE, artifact, str(budget * 10**6)], capture_output=True, text=True, check=False)
        print(f"{budget:5} MB  {done.stdout.strip() or done.stderr.strip().splitlines()[-1]}", flush=True)
        worst |= done.returncode
    return worst


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
