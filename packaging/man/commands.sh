#!/bin/sh
# Prints the commands of terway-cli with all their options, as a section for help2man:
#
#   packaging/man/commands.sh TERWAY_CLI
set -eu
cli=$1
verbs() {
    "$cli" "$@" --help 2>&1 | sed -n '/^Commands:/,$s/^  \([a-z][a-z-]*\) .*/\1/p'
}
page() {
    printf '.SS terway\\-cli %s\n.nf\n' "$*"
    "$cli" "$@" --help 2>&1 | fold -s -w 100 | sed "s/\\\\/\\\\\\\\/g; s/^\([.']\)/\\\\\&\1/; s/-/\\\\-/g"
    printf '.fi\n'
}
echo '[commands in full]'
for verb in $(verbs); do
    page "$verb"
    for below in $(verbs "$verb"); do
        page "$verb" "$below"
    done
done
