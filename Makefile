# make demo    the main job on real content, with kills; needs nothing but python3
# make test    the tests, as many modules at once as there are cores: WORKERS=n, 0: one after the other in one process
# make fuzz    coverage-guided fuzzing: TARGET=name SECONDS=60 WORKERS=1 UNTIL=executions
# make crash   the crash rigs: RIG=name (default: all) STATES=n SECONDS=s SEED=n OUT=dir
# make crash-report   one page of all that is in OUT; SUMMARY=file.json: its figures, to be kept (make figures)
# make coverage   branches of journal, lifecycle and recovery: 100 %, or it fails
# make site    the documentation as a site: build/site; a warning is a failure, and so is what a reader's browser would fetch elsewhere
# make figures   the pages of what was measured and shown from bench/results and crash/results, and the README's tables from those
# make man     the man pages, from the commands: contrib/man
# make dist    wheel and sdist, into dist/
# make check   lint, types, tests
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check lint types docs site figures man dist bench bench-store fuzz crash crash-report coverage clean

$(VENV)/ready: pyproject.toml
	@sh tools/venv.sh "$(PYTHON)" "$(VENV)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/ready
	$(BIN)/python demo/demo.py

test: $(VENV)/ready
	$(BIN)/python -m pytest -n $(or $(WORKERS),auto) --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check src journal/layerjournal crash fuzz examples

types: $(VENV)/ready-dev
	$(BIN)/mypy

check: lint types test

# the quickest tests that reach every branch; docs/coverage.md
COVERING = journal/tests tests/test_recovery.py tests/test_recovery_rare.py tests/test_delete.py \
	tests/test_lifecycle.py tests/test_interrupts.py tests/test_rebuild.py tests/test_repair.py tests/test_signatures.py
SLOW = without_any_one or really_full or bit_that_is_flipped or any_bit_flipped or every_fault_point or \
	any_fault_point or busy_store or journal_interrupts or page_that_is_hit or bit_of_the_meta or process_dies or \
	killed_anywhere

coverage: $(VENV)/ready
	rm -rf .coverage.d
	$(BIN)/python -m coverage run -m pytest -q $(COVERING) -k "not ($(SLOW))"
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

docs: $(VENV)/ready
	$(BIN)/python -m layerstore.lifecycle.states > docs/states.md

site: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python tools/sitepages.py build/site-pages
	$(BIN)/python tools/diagrams.py build/site-pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python tools/sitecheck.py build/site

figures: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench page --out bench/results --page docs/performance.md
	$(BIN)/python -m crash figures crash/results/evidence.json docs/evidence.md
	$(BIN)/python -m crash.peer crash/results --page docs/peer.md
	$(BIN)/python tools/figures.py

man: $(VENV)/ready
	$(BIN)/python tools/manpages.py contrib/man

dist: $(VENV)/ready
	$(BIN)/python -m build --outdir dist .

bench: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench $(if $(MEASURE),run $(MEASURE),all) $(ARGS)

# about ten minutes on an idle machine; root, for file systems of its own
bench-store: $(VENV)/ready
	$(BIN)/python -m bench.store --dir $(or $(DIR),/var/tmp) --json $(or $(JSON),bench-store.json) $(ARGS)

fuzz: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python -m fuzz $(or $(TARGET),all) --seconds $(or $(SECONDS),60) --workers $(or $(WORKERS),1) \
		$(if $(UNTIL),--until $(UNTIL))

OUT ?= crash-out
crash: $(VENV)/ready
	$(BIN)/python -m crash $(if $(RIG),run $(RIG),all) --out $(OUT) $(if $(STATES),--states $(STATES)) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

crash-report: $(VENV)/ready
	$(BIN)/python -m crash report --out $(OUT) $(if $(SUMMARY),--summary $(SUMMARY)) $(if $(FIGURES),--figures $(FIGURES))

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
