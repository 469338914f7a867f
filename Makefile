# `make demo` and `make test` do all their own set-up on a bare Debian with Python 3.11.
PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help demo run test test-real test-stores check unit fuzz wheel lock clean

help: ## list the goals
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## record and transcribe a sample call, and print the conversation
	@scripts/setup run
	@$(PYTHON) scripts/demo.py

run: ## start the bridge with its embedded defaults, data in ./data
	@scripts/setup run
	@exec .venv/bin/siprec-bridge serve

test: ## the whole suite: format, lint, types, layers, tests
	@scripts/setup test
	@$(MAKE) --no-print-directory check unit

check:
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

unit:
	$(PYTHON) -m pytest -m "not slow" --numprocesses 4 --dist loadfile --durations 20

test-real: test-stores ## openai-whisper, whisper-ctranslate2 and whisper.cpp themselves, with tiny models made here
	@scripts/setup-real
	$(PYTHON) -m pytest tests/real/test_real_recognisers.py

test-stores: ## gs:// and az://, against an emulator of Google's store and against Microsoft's own, Azurite (needs npm)
	@scripts/setup test
	@scripts/setup-stores
	build/stores/bin/python -m pytest tests/real/test_real_stores.py

fuzz: ## look for bytes that break a parser, FUZZ_SECONDS (60) a target
	@scripts/setup fuzz
	@scripts/fuzz $(or $(FUZZ_SECONDS),60)

wheel: ## build the wheel and run the suite against it, not against the checkout
	@scripts/setup test
	@scripts/test-wheel

lock: ## pin the newest versions that pyproject.toml allows
	scripts/lock

clean: ## remove what the goals above made, but not ./data
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
