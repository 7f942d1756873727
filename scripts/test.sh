#!/bin/sh
# Everything that must hold before a change is good: run by `make test`, which installs what is missing first.
#
# Ends at the first step that fails; says how long each step took. Needs neither a terminal nor a locale, and runs as
# root too.
set -eu

cd "$(dirname "$0")/.."
export CARGO_TERM_PROGRESS_WHEN=never
export RUST_BACKTRACE="${RUST_BACKTRACE:-1}"
report=""
began_all=$(date +%s)

step() {
    name=$1
    shift
    echo
    echo "== $name: $*"
    began=$(date +%s)
    if ! "$@" < /dev/null; then
        echo
        echo "FAILED: $name ($*)" >&2
        exit 1
    fi
    report="$report$(printf '%6s s  %s' "$(($(date +%s) - began))" "$name")
"
}

for component in fmt clippy; do
    if ! cargo "$component" --version > /dev/null 2>&1; then
        echo "cargo $component is missing: rustup component add rustfmt clippy" >&2
        exit 1
    fi
done

step "format" cargo fmt --all --check
step "lints" cargo clippy --all-targets --locked -- -D warnings
step "unit tests" cargo test --locked --lib --bins
if command -v node > /dev/null 2>&1; then
    # shellcheck disable=SC2046 # a list of files
    step "browser client's unit tests" node --test $(echo tests/js/*.test.js)
else
    report="$report     –    browser client's unit tests: not run, since node is not installed
"
fi
step "integration and browser tests" cargo test --locked --test it
if cargo deny --version > /dev/null 2>&1; then
    step "dependencies" cargo deny check
else
    report="$report     –    dependencies: not checked, since cargo-deny is not installed
"
fi

echo
echo "All is well, in $(($(date +%s) - began_all)) s:"
printf '%s' "$report"
