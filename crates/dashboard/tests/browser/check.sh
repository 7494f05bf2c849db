#!/bin/sh
# Opens every view of the page in a headless Chromium, wide and narrow, light and dark, and by keyboard alone; asserts
# that it fits, says no errors and passes axe's rules (contrast among them). `check.sh PICTURES` also writes screenshots.
# What it needs beside Chromium comes from the npm registry into a throw-away folder.
set -eu
cd "$(dirname "$0")/../../../.."
chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$chromium" ] || ! command -v npm >/dev/null; then
    echo "skipped: the page is tested in a browser, and there is no Chromium or no npm here (Debian: apt-get install chromium npm)"
    exit 0
fi
pictures=${1:+$(mkdir -p "$1" && cd "$1" && pwd)}
folder=$(mktemp -d)
server=
trap 'test -z "$server" || kill $server; rm -rf "$folder"' EXIT
# SLUICE_BIN names the folder of a program that is built already.
if [ -z "${SLUICE_BIN:-}" ]; then
    cargo build --quiet --locked -p cli --bin sluice
    SLUICE_BIN=target/debug
fi
if ! npm install --silent --no-save --no-audit --no-fund --prefix "$folder" puppeteer-core@25.16.0 axe-core@4.14.1; then
    echo "skipped: the page is tested in a browser by packages of the npm registry, which is out of reach"
    exit 0
fi
cp crates/dashboard/tests/browser/*.mjs "$folder"
node "$folder/fixture.mjs" "$folder/runs"
"$SLUICE_BIN/sluice" dashboard --port 0 "$folder/runs/best-worst" 2>"$folder/one" &
server=$!
"$SLUICE_BIN/sluice" dashboard --port 0 "$folder/runs/best-worst" "$folder/runs/none" "$folder/runs/bare" 2>"$folder/several" &
server="$server $!"
for said in one several; do
    tries=0
    until grep -q '^http' "$folder/$said"; do
        tries=$((tries + 1))
        test "$tries" -lt 300 || { cat "$folder/$said"; exit 1; }
        sleep 0.1
    done
done
one=$(cut -d' ' -f1 "$folder/one") several=$(cut -d' ' -f1 "$folder/several")
CHROMIUM=$chromium node "$folder/check.mjs" "$one" "$several" "$folder/runs" "$pictures"
