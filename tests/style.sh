#!/bin/bash
# SPDX-License-Identifier: MIT
# What a machine can say about style: formatting, unused names, stray characters, includes, sizes, prose, subjects of commits.
# Exits with 77 if a checker is not installed and the others find nothing.
set -u
cd "$(dirname "$0")/.." || exit 1
bad=0 missing=''
sources=$(git ls-files '*.c' '*.h' '*.cc' '*.cu')
say() {
    echo "$1"
    bad=1
}
text=$(git ls-files | grep -vE '\.(safetensors|model|zip|gz|bin)$|^tests/(golden|bad)/|^data/demo/')
python=$(git ls-files '*.py')
# shellcheck disable=SC2086
scripts=$(awk 'FNR == 1 && /^#!.*sh$/ { print FILENAME } { nextfile }' $text)
# check PROGRAM ARGUMENT...: a checker that may be missing.
check() {
    if command -v "$1" >/dev/null; then
        "$@" || say "style: $1 found something in the files above"
    else
        missing+=" $1"
    fi
}
# shellcheck disable=SC2086
{
    check clang-format --dry-run -Werror $sources
    check pyflakes3 $python
    check shellcheck $scripts
}
# shellcheck disable=SC2086
grep -nP '\t' $sources && say 'style: tabs in C sources'
# shellcheck disable=SC2086
grep -nE ' +$' $text && say 'style: trailing blanks'
# shellcheck disable=SC2086
grep -nP '[\x{200B}-\x{200F}\x{202A}-\x{202E}\x{2066}-\x{2069}]' $sources && say 'style: invisible characters'
for f in $text; do
    [ ! -s "$f" ] || [ "$(tail -c1 "$f" | od -An -c | tr -d ' ')" = '\n' ] || say "style: $f has no newline at its end"
done
for f in $sources $python $scripts; do
    [ "$(wc -l <"$f")" -le 600 ] || say "style: $f is longer than 600 lines"
done
for f in $sources; do
    head -1 "$f" | grep -q 'SPDX-License-Identifier: MIT' || say "style: $f does not begin with its SPDX line"
done
# shellcheck disable=SC2086
long=$(awk 'FNR == 1 { start = 0 }
    /^[{]/ || /^[A-Za-z].*[)] [{]$/ { start = FNR }
    /^[}]/ { if (start && FNR - start > 60) print FILENAME ":" start; start = 0 }' $sources)
[ -z "$long" ] || say "style: functions longer than 60 lines: $long"
# Tables between "clang-format off" and "on" may be wider.
# shellcheck disable=SC2086
wide=$(awk 'FNR == 1 { table = 0 } /clang-format off/ { table = 1 } /clang-format on/ { table = 0 }
    length > 100 && !table { print FILENAME ":" FNR }' $sources)
[ -z "$wide" ] || say "style: lines of more than 100 columns: $wide"
full=$(git ls-files kernels data calib convert tools | grep -E '\.(c|h|cc|cu)$' | sed 's:/[^/]*$::' | sort | uniq -c | awk '$1 > 25 { print $2 }')
[ -z "$full" ] || say "style: folders of more than 25 source files: $full"
version=$(sed -n "s/^  version: '\(.*\)',/\1/p" meson.build)
packaged=$(sed -n '1s/^wkvq (\(.*\)) .*/\1/p' debian/changelog)
[ "$packaged" = "$version" ] || say "style: debian/changelog has version $packaged, meson.build $version"
python3 tests/layers.py . || bad=1
tests/prose.sh --self-test || bad=1
tests/prose.sh || bad=1
if [ -n "$missing" ]; then
    echo "style: not checked, because not installed:$missing (tools/dev/packages check installs them)"
    [ $bad = 1 ] || exit 77
fi
exit $bad
