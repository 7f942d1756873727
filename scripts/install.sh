#!/bin/sh
# Installs the programs that the demo or the tests need, where they are missing.
#
#   scripts/install.sh demo    a PostgreSQL server and Redis
#   scripts/install.sh test    also Chromium and its driver
#
# On Debian and Ubuntu through apt-get, with sudo only if we are not root, and it says so first. On other systems it says
# what to install. Where nothing is missing it does nothing and says nothing.
set -eu

for_what=${1:-test}

has() {
    command -v "$1" > /dev/null 2>&1
}

# The server's programs are not in PATH on Debian: rowcast looks in the same places (src/demo/instance/postgres.rs).
has_postgres() {
    has postgres && return 0
    for program in "$(pg_config --bindir 2> /dev/null || true)"/postgres /usr/lib/postgresql/*/bin/postgres \
        /usr/pgsql-*/bin/postgres /opt/homebrew/opt/postgresql*/bin/postgres /usr/local/opt/postgresql*/bin/postgres; do
        [ -x "$program" ] && return 0
    done
    return 1
}

has_chromium() {
    has chromium || has chromium-browser || has google-chrome
}

# Debian's name of a package, or Ubuntu's where that is another.
package() {
    for name in "$@"; do
        if [ -n "$(apt-cache policy "$name" 2> /dev/null | sed -n 's/^  Candidate: \([0-9].*\)/\1/p')" ]; then
            echo "$name"
            return
        fi
    done
    echo "$1"
}

if ! has cargo; then
    echo "Rust is missing: see https://rustup.rs" >&2
    exit 1
fi

missing=""
has_postgres || missing="$missing postgres"
has redis-server || has valkey-server || missing="$missing redis"
if [ "$for_what" = test ]; then
    has_chromium || missing="$missing chromium"
    has chromedriver || missing="$missing chromedriver"
fi
has cc || missing="$missing cc"
[ -n "$missing" ] || exit 0

if ! has apt-get; then
    echo "Missing:$missing. Please install:" >&2
    echo "  PostgreSQL 14 or newer, with its server    macOS: brew install postgresql@17" >&2
    echo "  Redis 7 or newer                           macOS: brew install redis" >&2
    if [ "$for_what" = test ]; then
        echo "  Chromium (or Chrome) and chromedriver      macOS: brew install --cask chromium chromedriver" >&2
    fi
    # The demo does without Redis; nothing does without PostgreSQL.
    if [ "$for_what" = demo ] && [ "$missing" = " redis" ]; then
        exit 0
    fi
    exit 1
fi

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! has sudo; then
        echo "Missing:$missing. They can be installed by root only, and there is no sudo." >&2
        exit 1
    fi
    as_root="sudo"
fi

echo "Missing:$missing. Installing with ${as_root:+$as_root }apt-get …"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q
packages=""
for what in $missing; do
    case $what in
        postgres) packages="$packages $(package postgresql)" ;;
        redis) packages="$packages $(package redis-server valkey-server)" ;;
        chromium) packages="$packages $(package chromium chromium-browser)" ;;
        chromedriver) packages="$packages $(package chromium-driver chromium-chromedriver)" ;;
        cc) packages="$packages gcc libc6-dev" ;;
    esac
done
echo "apt-get install$packages"
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages < /dev/null
