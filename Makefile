# The two commands. Each installs what is missing (see scripts/install.sh) and then runs.

.PHONY: help demo test

help:
	@echo "make demo   show it: a small shop on a private database, with a page"
	@echo "make test   check everything: format, lints, unit and integration tests, a browser"

# make demo ARGS="--rate 200"
demo:
	@scripts/install.sh demo
	cargo run -- demo $(ARGS)

test:
	@scripts/install.sh test
	@scripts/test.sh
