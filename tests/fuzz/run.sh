#!/bin/sh
# Builds the fuzz targets and runs each for so many seconds (60), two at a time: tests/fuzz/run.sh [SECONDS [TARGET...]].
# What libFuzzer needs of the compiler is in the stable one; coverage of ours and of what we read with is all that differs.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
[ $# -eq 0 ] || shift
host=x86_64-unknown-linux-gnu
target=$PWD/target/fuzz
coverage="-Cpasses=sancov-module"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage="$coverage -Cllvm-args=-sanitizer-coverage-$flag"
done
# Flags for this target alone: build scripts and macros run without coverage.
RUSTFLAGS="--cfg fuzzing $coverage" CARGO_PROFILE_RELEASE_LTO=off \
    cargo build -q --release --manifest-path tests/fuzz/Cargo.toml --target $host --target-dir "$target"

# shellcheck disable=SC2016
one='
set -eu
name=$1 target=$2 seconds=$3
corpus=$target/corpus/$name found=$target/found/$name
mkdir -p "$corpus" "$found"
TERWAY_FUZZ=$name "$target/'$host'/release/terway-fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=40000 \
    -print_final_stats=1 -artifact_prefix="$found/" "$corpus" "tests/fuzz/seeds/$name" >"$target/$name.log" 2>&1 || {
    tail -n 60 "$target/$name.log" >&2
    echo "fuzz target $name failed; what it was given: $found" >&2
    exit 1
}
echo "$name: $(sed -n "s/^stat::number_of_executed_units: *//p" "$target/$name.log") runs, $(ls "$corpus" | wc -l) inputs kept"
'
[ $# -gt 0 ] || set -- $(ls tests/fuzz/seeds)
printf '%s\n' "$@" | xargs -P 2 -I NAME sh -c "$one" sh NAME "$target" "$seconds"
