# Everything runs in an own virtual environment, .venv, with the versions of constraints.txt.
# Needs make and one Python of 3.10 to 3.13; another than python3: make demo PYTHON=python3.11

PYTHON ?= python3
BENCH ?= timing
ARGS ?=

SUPPORTED := 3.10 3.11 3.12 3.13
FOUND := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# A stamp says "this much is installed, from this pyproject.toml and these constraints". It is
# written last, so what was interrupted is done again. The Python's version is part of the name:
# another Python makes another environment.
BIN := .venv/bin
FRESH := .venv/stamp-$(FOUND)
INPUTS := pyproject.toml setup.py constraints.txt

.PHONY: help demo test long aot sanitize lint docs bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:
# make would take a stamp that only leads to another stamp for a leftover
.SECONDARY:

help:
	@echo 'make demo    write a one-minute video, ask the embedded model about it, check its answers'
	@echo 'make test    the tests                 one file: make test ARGS=tests/ops/tome'
	@echo '             and, without ARGS, the contracts of the kernels in the interpreter'
	@echo 'make long    the tests that take minutes: marked long, on the reference and in the interpreter'
	@echo 'make aot     compile every kernel for six GPU targets and judge the machine code: minutes'
	@echo 'make sanitize  look for indices out of bounds in every kernel with triton-viz: minutes'
	@echo 'make lint    ruff and mypy'
	@echo 'make docs    the documentation site, into site/   needs Python 3.11 or newer'
	@echo 'make bench   times every op on a GPU   another: make bench BENCH=cpu ARGS=scan'
	@echo 'make clean   remove the environment, builds and caches'

demo: $(FRESH)-run
	@$(BIN)/timeviper-fast demo $(ARGS)

test: $(FRESH)-test
	@$(BIN)/python -m pytest $(or $(strip $(ARGS)),--ignore=tests/machine_code)
ifeq ($(strip $(ARGS)),)
	@echo 'the same contracts on the kernels, through the interpreter'
	@TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto -m triton tests/analysis tests/core tests/ops tests/model tests/integrations
endif

long: $(FRESH)-test
	@$(BIN)/python -m pytest --long -m long $(or $(strip $(ARGS)),--ignore=tests/machine_code)
	@TRITON_INTERPRET=1 $(BIN)/python -m pytest --long -m "long and triton" $(or $(strip $(ARGS)),tests) || \
		{ test $$? -eq 5 && echo 'none of them runs a kernel'; }

# a process of its own: under TRITON_INTERPRET=1 nothing can be compiled
aot: $(FRESH)-test
	@env -u TRITON_INTERPRET $(BIN)/python -m pytest tests/machine_code $(ARGS)

# triton-viz 3.0 does not import with Triton 3.9, and Triton 3.6's interpreter needs an older numpy
SANITIZER := .cache/sanitizer
sanitize: $(FRESH)-test $(SANITIZER)/stamp
	@PYTHONPATH=$(SANITIZER) $(BIN)/python -m tests.sanitize $(ARGS)

$(SANITIZER)/stamp: | $(FRESH)-test
	@echo 'installing triton-viz: some minutes the first time'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(SANITIZER) \
		triton==3.6.0 triton-viz==3.0 'numpy<2.4'
	@touch $@

lint: $(FRESH)-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# what mkdocs warns of is an error; it loads nothing from elsewhere
docs: $(FRESH)-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(FRESH)-test
	@$(BIN)/python -m benchmarks.$(BENCH) $(ARGS)

clean:
	rm -rf .venv .cache build dist site demo-output *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(FRESH): $(INPUTS)
ifeq ($(filter $(SUPPORTED),$(FOUND)),)
	$(error Python 3.10, 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $(or $(FOUND),not one); \
	name one: make $(MAKECMDGOALS) PYTHON=python3.11)
endif
	@echo 'making .venv with Python $(FOUND)'
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@touch $@

$(FRESH)-run: EXTRAS = video,vision
$(FRESH)-test: EXTRAS = test
$(FRESH)-dev: EXTRAS = dev
$(FRESH)-docs: EXTRAS = docs
$(FRESH)-run $(FRESH)-test $(FRESH)-dev $(FRESH)-docs: $(FRESH)
	@echo 'installing timeviper-fast[$(EXTRAS)]: some minutes the first time'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
