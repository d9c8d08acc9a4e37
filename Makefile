# make demo    a cluster on this machine, shown and verified step by step
#              (HYPERVISOR=qemu boots real tiny guests on namespaced hosts; takes root)
# make up      the same cluster, kept running until Ctrl-C
# make test    everything CI runs: checks and all tests, with the servers they need
# make check   format, lint and types only
# make clean   what was built; not .venv

HYPERVISOR ?= test
PORT ?= 5000
BIN := .venv/bin
PYTEST_OPTIONS ?=

.PHONY: demo up test check clean install-test

demo:
	@scripts/install demo $(HYPERVISOR)
	@$(BIN)/python -m snooze.client.demo --hypervisor $(HYPERVISOR)

up:
	@scripts/install demo $(HYPERVISOR)
	@$(BIN)/snooze up --hypervisor $(HYPERVISOR) --port $(PORT)

install-test:
	@scripts/install test

check: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

test: check
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
