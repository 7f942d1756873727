# The two commands. Each installs what is missing (see scripts/install.sh) and then runs.

.PHONY: help demo test bench bench-capture bench-delivery bench-permissions

help:
	@echo "make demo   show it: a small shop on a private database, with a page"
	@echo "make test   check everything: format, lints, unit and integration tests, a browser"
	@echo "make bench  measure again what docs/benchmarks.md tells"

# make demo ARGS="--rate 200"
demo:
	@scripts/install.sh demo
	cargo run -- demo $(ARGS)

test:
	@scripts/install.sh test
	@scripts/test.sh

# About ten minutes; on a machine that does nothing else.
bench: bench-capture bench-delivery bench-permissions

# What triggers cost: make bench-capture ARGS="5 2" (runs, seconds)
bench-capture:
	@scripts/install.sh demo
	python3 tests/bench/capture.py $(ARGS)

# What writers keep of their speed, and how soon a commit is on a dashboard: make bench-delivery ARGS="latency"
bench-delivery:
	@scripts/install.sh demo
	cargo bench --locked --bench delivery -- $(ARGS)

# What permission costs the fan-out: make bench-permissions ARGS="--clients 1000 --runs 5"
bench-permissions:
	@scripts/install.sh demo
	cargo bench --locked --bench permissions -- $(ARGS)
