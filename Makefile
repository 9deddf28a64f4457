# One word per task. `make` runs the course, `make test` tests it; both create what they need and may be run again.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := all
.PHONY: all env system book release demo check lint test unit bench soak clean help

PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$name >/dev/null 2>&1 && $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
# Threads that spin while they wait slow a machine of few cores down by a multiple.
export OMP_WAIT_POLICY := PASSIVE
STAMP := .venv/.complete
step = @printf '\n\033[1m== %s\033[0m\n' "$(1)"

all: env system book release demo  ## build the book, release the notebooks, grade the sample class
	$(call step,Done)
	@echo "Book:      _build/html/index.html   (widgets need a server: $(BIN)/attn book --serve)"
	@echo "Notebooks: _build/release/"
	@echo "Report:    _build/demo/report/index.html"

env: $(STAMP)  ## the environment in .venv, renewed when a pin changed

$(STAMP): requirements.txt pyproject.toml
	$(call step,Environment (a few minutes on the first run))
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) lacks venv; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@# The jail's user must be able to read the libraries, whatever the mask of whoever installs them.
	umask 022; $(PYTHON) -m venv .venv
	umask 022; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
	umask 022; $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

# What tests need beside Python. Installed where that is possible (Debian or Ubuntu, as root), named where it is not.
system:  ## Chromium for the browser tests, PostgreSQL for the gradebook's, bubblewrap for the cold jail's, ip for networks
	@missing=""; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing="chromium"; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	command -v bwrap >/dev/null || missing="$$missing bubblewrap"; \
	command -v ip >/dev/null || missing="$$missing iproute2"; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing $$missing"; apt-get update -qq; \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		else echo "Missing: $$missing. What needs it is reported as not run. On Debian or Ubuntu: sudo make system"; fi; fi

book: env  ## the HTML book in _build/html
	$(call step,Book)
	$(BIN)/attn build
	$(BIN)/attn book

release: env  ## the student bundle in _build/release
	$(call step,Student notebooks)
	$(BIN)/attn release

demo: env  ## grade the sample class
	$(call step,Sample class)
	$(BIN)/attn demo

check: env  ## the author's judge
	$(call step,The hidden suites judged: right answers and named mistakes)
	$(BIN)/attn check --json _build/check.json

lint: env  ## format, style, types
	$(call step,Style and types)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: env system  ## the tests of the tool, of the built book in a browser, and of the sample class
	$(call step,Tests)
	$(BIN)/python -m pytest

test: env system lint  ## everything that CI runs
	$(call step,Notebooks are what their sources make)
	$(BIN)/attn build --check
	$(MAKE) --no-print-directory check
	$(call step,Book (a warning is an error))
	$(BIN)/attn book --strict
	$(MAKE) --no-print-directory unit

bench: env  ## the benchmarks that run on this machine
	$(BIN)/python benchmarks/flash.py --tiny --json _build/flash_tiny.json
	$(BIN)/python benchmarks/long_sequences.py --json _build/long_sequences.json
	$(BIN)/python benchmarks/grading.py --students 40 --rounds 1 --json _build/grading.json

soak: env system  ## the long versions: 50 kills, 20 seeds, deep fuzz, 5,000 submissions; goes on where it was stopped
	$(BIN)/python benchmarks/soak.py --json _build/soak/soak.json

clean:  ## remove what was built; the environment and the course's grades stay
	rm -rf _build

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s '	'
