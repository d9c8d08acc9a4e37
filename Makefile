# make demo    a cluster on this machine, shown and verified step by step
#              (HYPERVISOR=qemu boots real tiny guests on namespaced hosts; takes root)
# make lab-demo  four real hosts run themselves: load moves, hosts sleep and wake, one dies; takes root
# make up      the same cluster, kept running until Ctrl-C
# make test    everything CI runs: checks and all tests, with the servers they need
# make soak    SEEDS simulated clusters in trouble, in virtual time (default 10000)
# make check   format, lint and types only
# make chaos   faults on real processes, ROUNDS=100 of them from SEED=1; takes root
# make clean   what was built; not .venv

HYPERVISOR ?= test
PORT ?= 5000
ROUNDS ?= 100
SEED ?= 1
BIN := .venv/bin
PYTEST_OPTIONS ?=
# Most tests wait for daemons, not for a processor. A file's tests stay together and in their order.
LANES ?= -n 3 --dist loadfile --no-loadscope-reorder
# Simulated processes that are killed close nothing, by intent: in a session of its own, no leak.
SIM_LANES ?= -n 2 -W ignore::ResourceWarning
SEEDS ?= 10000
# Hundreds of daemons are started by the tests: each would compile all modules again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo up test check mypy pyright chaos clean install-test lab-demo soak

demo:
	@scripts/install demo $(HYPERVISOR)
	@$(BIN)/python -m snooze.client.demo --hypervisor $(HYPERVISOR)

up:
	@scripts/install demo $(HYPERVISOR)
	@$(BIN)/snooze up --hypervisor $(HYPERVISOR) --port $(PORT)

lab-demo:
	@scripts/install demo lab
	@$(BIN)/python -m snooze.client.lab_demo

install-test:
	@scripts/install test

check: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory -j2 --output-sync=target mypy pyright

mypy pyright:
	$(BIN)/$@

test: check
	$(BIN)/python -m pytest $(LANES) --ignore=tests/sim $(PYTEST_OPTIONS)
	$(BIN)/python -m pytest $(SIM_LANES) tests/sim $(PYTEST_OPTIONS)

chaos: install-test
	PYTHONPATH=typings:. $(BIN)/python -m tests.integration.chaos --rounds $(ROUNDS) --seed $(SEED)

soak: install-test
	PYTHONPATH=typings $(BIN)/python -m snooze.simulation.command run --seeds 1-$(SEEDS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
