# Every target sets up what it needs, on a machine with git, make and some python3: see `make help`.

PYTHON := .venv/bin/python
PYTEST_ARGS ?=
# Tests run in two processes; XDIST= runs them all in one.
XDIST ?= -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo examples test lint format bench docs wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: .venv/.extra-examples ## fit one model by Laplace, VI and NUTS, and compare the posteriors
	@$(PYTHON) examples/compare_posteriors.py

examples: ## run the examples, two at a time; their figures come into the documentation
	@$(MAKE) --no-print-directory --jobs 2 $(RUNS)

test: .venv/.extra-test ## run the tests; PYTEST_ARGS="-k guide" passes options on
	@$(PYTHON) -m pytest $(XDIST) $(PYTEST_ARGS)

lint: .venv/.extra-test ## check style, docstrings, formatting and types
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m pyright

format: .venv/.extra-test ## format the code, and repair what the linter can
	@$(PYTHON) -m ruff check --fix
	@$(PYTHON) -m ruff format

bench: .venv/.extra-test ## run the benchmarks
	@$(PYTHON) -m pytest tests/benchmarks -m benchmark -s $(PYTEST_ARGS)

docs: .venv/.extra-docs ## build the documentation, with figures where `make examples` has run: docs/_build/html/index.html
	@$(PYTHON) -m sphinx -M html docs docs/_build -W --keep-going

wheel: .venv/pyvenv.cfg ## build a wheel, and try it in a fresh environment: dist/
	@$(GET_UV) && rm -rf dist && $$uv build --quiet && $(PYTHON) tests/wheel/try_wheel.py "$$uv" dist/*.whl

clean: ## remove caches and what was built; the environment stays (rm -r .venv .uv)
	rm -rf build dist docs/_build docs/examples compare_posteriors .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.*' -prune -exec rm -rf {} +

# What an example printed, beside its figures, in place of which there is nothing if it fails.
RUNS := $(patsubst examples/%.py,docs/_build/examples/%/printed.txt,$(shell grep -l 'from _options import' examples/*.py))

docs/_build/examples/%/printed.txt: examples/%.py examples/_options.py | .venv/.extra-examples
	@echo examples/$*.py && rm -rf $(@D) && mkdir -p $(@D)
	@$(PYTHON) examples/$*.py --out $(@D) >$(@D)/printed && mv $(@D)/printed $@

# Leaves in $uv a uv that runs, installed if there is none. A command of that name is not enough: pyenv has one for each uv of
# any of its Pythons, which fails where .python-version names another. Hence also `cd /`, out of that file's reach.
FIND_UV = uv=; for it in uv "python3 -m uv" "$(CURDIR)/.uv/bin/uv"; do $$it --version >/dev/null 2>&1 && uv=$$it && break; \
	done; test -n "$$uv"
GET_UV = $(FIND_UV) || python3 -m pip install --quiet uv 2>/dev/null || \
	{ (cd / && python3 -m venv "$(CURDIR)/.uv") && .uv/bin/python -m pip install --quiet uv; }; $(FIND_UV)

# The Python of .python-version; where that is neither found nor to be had, any that will do.
.venv/pyvenv.cfg:
	@$(GET_UV) && { $$uv venv .venv || (cd / && $$uv venv --python '>=3.12' "$(CURDIR)/.venv"); }

# One stamp for each extra of pyproject.toml.
.venv/.extra-%: pyproject.toml .venv/pyvenv.cfg
	@$(GET_UV) && $$uv pip install --python $(PYTHON) --editable '.[$*]'
	@touch $@
