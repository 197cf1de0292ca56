# Two environments, one a stack: .venv-cuda (NVIDIA GPUs and CPUs) and .venv-hpu (Intel Gaudi; tested here on CPU).
# PYTHON=python3.12 make … picks another interpreter.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA := .venv-cuda
HPU := .venv-hpu
SOURCES := rlhf_hw backends launchers benchmarks tests hpu_emulator $(wildcard *.py)
EMULATOR := hpu_emulator/setup.py hpu_emulator/pyproject.toml $(shell find hpu_emulator/csrc hpu_emulator/src -name '*.cpp' -o -name '*.h' -o -name '*.py')
# Tests run one a core, each with one thread; more threads than cores make each other wait.
TEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HPU_EMULATOR_QUIET=1
# DeepSpeed compiles a library for the torch it meets: one place an environment, inside this folder, where no other run's lock waits.
EXTENSIONS = TORCH_EXTENSIONS_DIR=$(CURDIR)/build/torch_extensions/$(1)
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: help system demo bench bench-growth test test-web test-quantized test-cuda test-hpu test-emulator acceptance lint format env clean
help:
	@echo "make demo      base model to aligned model on the embedded example (about 5 minutes on two CPU cores)"
	@echo "make test      the whole test-suite, on both stacks"
	@echo "make test-cuda make test-hpu    … on one of them"
	@echo "make test-emulator  the Gaudi emulator's own suite"
	@echo "make test-web  the chat page in headless Chromium (about a minute)"
	@echo "make test-quantized  LoRA on 4-bit weights, with bitsandbytes (half a minute)"
	@echo "make acceptance  the demo, held to its promises (minutes)"
	@echo "make lint      formatting, lint and types"
	@echo "make system    programs of the system that the tests start: mpirun, ip, pdsh (Debian and Ubuntu, as root)"
	@echo "make bench     speed against TRL, both sides run here (about 15 minutes; results in benchmarks/results)"
	@echo "make bench-growth  how the cost of PPO and SFT grows with model, batch, length and processes (about 10 minutes)"
	@echo "make env       the environment of the CUDA/CPU stack alone: $(CUDA)"

# Only what is missing is installed, and only by root; others are told what to ask for.
SYSTEM_PACKAGES = $(strip $(if $(shell command -v mpirun 2> /dev/null),,openmpi-bin) $(if $(shell command -v ip 2> /dev/null),,iproute2) \
	$(if $(shell command -v pdsh 2> /dev/null),,pdsh) $(if $(shell command -v ssh 2> /dev/null),,openssh-client))
system:
	@if [ -z "$(SYSTEM_PACKAGES)" ]; then exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES); \
	else echo "missing; install: $(SYSTEM_PACKAGES) (tests that need mpirun fail without it, or RLHF_HW_NO_MPI=1 skips them)"; fi

env: $(CUDA)/.ready
demo: $(CUDA)/.ready
	$(CUDA)/bin/rlhf-hw demo

# Speed against TRL. The peers go into places of their own: TRL 1.12 beside the environment's other packages, TRL 0.11.4
# with the packages of its time.
bench: $(CUDA)/.ready build/peers/trl-1.12/.ready build/peers/classic/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(CUDA)/bin/python benchmarks/speed $(BENCH_FLAGS)
bench-growth: $(CUDA)/.ready build/peers/trl-1.12/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(CUDA)/bin/python benchmarks/speed --growth $(BENCH_FLAGS)
build/peers/trl-1.12/.ready: $(CUDA)/.ready
	rm -rf $(@D)
	$(CUDA)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) trl==1.12.0
	touch $@
build/peers/classic/.ready:
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" trl==0.11.4 transformers==4.45.2 \
		peft==0.13.2 accelerate==1.0.1 datasets==3.0.2 rich
	touch $@

test: lint test-cuda test-hpu test-emulator
test-cuda: $(CUDA)/.ready-emulator
	$(TEST) $(call EXTENSIONS,cuda) $(CUDA)/bin/python -m pytest $(PYTEST_FLAGS)
	PT_HPU_LAZY_MODE=1 $(TEST) $(CUDA)/bin/python -m pytest tests/hpu/test_hpu_graphs.py
test-hpu: $(HPU)/.ready-emulator
	$(TEST) $(call EXTENSIONS,hpu) $(HPU)/bin/python -m pytest $(PYTEST_FLAGS)

# The emulator's own suite: optimum-habana on it in one environment, current transformers on it in the other.
test-emulator: $(CUDA)/.ready-emulator $(HPU)/.ready-emulator
	cd hpu_emulator && $(TEST) $(call EXTENSIONS,hpu) ../$(HPU)/bin/python -m pytest $(PYTEST_FLAGS)
	cd hpu_emulator && $(TEST) ../$(CUDA)/bin/python -m pytest $(PYTEST_FLAGS) tests/test_native_trainer.py

# The chat page in headless Chromium. gradio goes into a place of its own: nothing in the environment changes.
test-web: $(CUDA)/.ready-dev build/web/.ready
	@command -v chromedriver > /dev/null || { echo "missing; install: chromium chromium-driver (Debian's names)"; exit 1; }
	PYTHONPATH=build/web $(TEST) $(CUDA)/bin/python -m pytest -m web tests/web
build/web/.ready: $(CUDA)/.ready requirements-web.txt
	rm -rf $(@D)
	$(CUDA)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r requirements-web.txt
	touch $@

# LoRA on 4-bit weights. bitsandbytes goes into a place of its own: where it is installed every command imports it (a second).
test-quantized: $(CUDA)/.ready-dev build/quantized/.ready
	PYTHONPATH=build/quantized $(TEST) $(CUDA)/bin/python -m pytest tests/cli/test_quantized.py
build/quantized/.ready: $(CUDA)/.ready
	rm -rf $(@D)
	$(CUDA)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) bitsandbytes==0.50.2
	touch $@

# The demo from end to end, held to what the README promises of it.
acceptance: $(CUDA)/.ready-dev
	HF_HUB_OFFLINE=1 $(CUDA)/bin/python -m pytest -m acceptance tests/acceptance

lint: $(CUDA)/.ready-dev
	$(CUDA)/bin/ruff format --check $(SOURCES)
	$(CUDA)/bin/ruff check $(SOURCES)
	$(CUDA)/bin/mypy
format: $(CUDA)/.ready-dev
	$(CUDA)/bin/ruff format $(SOURCES)
	$(CUDA)/bin/ruff check --fix $(SOURCES)

$(CUDA)/.ready: requirements-cuda.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rlhf_hw needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-cuda.txt
	$(CUDA)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The Gaudi stack without a Gaudi. On one, use the image's Python and its torch: see requirements-hpu.txt.
$(HPU)/.ready: requirements-hpu.txt pyproject.toml
	$(PYTHON) -m venv $(HPU)
	$(HPU)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(HPU)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-hpu.txt
	$(HPU)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

%/.ready-dev: %/.ready requirements-dev.txt requirements-deepspeed.txt
	$*/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$*/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -r requirements-deepspeed.txt
	touch $@

# Compiled once, against the torch that both environments have.
build/emulator/.built: $(HPU)/.ready-dev $(EMULATOR)
	rm -rf build/emulator
	MAX_JOBS=2 $(HPU)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w build/emulator ./hpu_emulator
	touch $@
%/.ready-emulator: %/.ready-dev build/emulator/.built
	$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/emulator/*.whl
	touch $@

clean:
	rm -rf $(CUDA) $(HPU) build hpu_emulator/build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
