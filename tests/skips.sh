#!/bin/sh
# Fails when tests were skipped (target/skipped) that skips.txt does not know, or fewer or more for a reason than it says: either what a
# reason names is there, and none is skipped, or it is not, and all are that need it.
set -eu
cd "$(dirname "$0")/.."
[ -e target/skipped ] || exit 0
sort -u target/skipped | cut -f 1 | uniq -c | while read -r count why; do
    grep -qxF "$count $why" tests/skips.txt && continue
    echo "tests/skips.txt does not say \"$count $why\"; these were skipped:" >&2
    sort -u target/skipped | grep -F "$why" >&2
    exit 1
done
