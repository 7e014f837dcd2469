#!/bin/sh
# SPDX-License-Identifier: MIT
# What a machine can say about prose. Prints FILE:LINE or the commit for each finding.
#   tests/prose.sh               checks the files below and the commits since $base
#   tests/prose.sh FILE...       checks these files
#   tests/prose.sh --self-test   checks that planted findings are found, and no others
set -u
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C

# To extend: banned phrases are of at most three words, separated by |. All lines of these files are
# checked: comments, messages, and docs.
banned='ask for|asks for|asked for|ask ahead|left alone|met by|goes on|go on|went on|gone on|who wants|came of|comes to'
banned="$banned|what is there|what was there|told apart|of strangers"
files=$(git ls-files '*.[ch]' '*.cc' '*.cu' '*.py' '*.sh' '*.md' '*.yaml' '*.cases' '*meson.build' tests/fuzz/run tools/check \
    tools/dev tools/quickstart | grep -vE '^tests/golden/(tok|models)/|^data/demo/|^tests/prose\.sh$')
# Commits up to this one were written before the rules for subjects.
base=cc63cd787ba3b6d948b05e8be3ccc79e3d5bec1f

# check_files FILE...: banned phrases in all files, also across a line break, and lines of more than
# 100 characters in .md files. Tables, fenced code and lines with an address may be longer.
check_files() {
    awk -v banned="$banned" '
    # Bytes of UTF-8 that continue a character do not count.
    function chars(s) { gsub(/[\200-\277]/, "", s); return length(s) }
    function find(s) {
        s = tolower(s)
        if (!match(s, "(^|[^a-z])(" banned ")([^a-z]|$)"))
            return ""
        s = substr(s, RSTART, RLENGTH)
        gsub(/^[^a-z]+|[^a-z]+$/, "", s)
        return s
    }
    function report(what) { print FILENAME ":" FNR ": " what; bad = 1 }
    FNR == 1 { fence = 0; tail = ""; markdown = FILENAME ~ /\.md$/ }
    markdown && /^ *```/ { fence = !fence; tail = ""; next }
    fence { next }
    markdown && !/^[|]/ && !/:\/\// && chars($0) > 100 {
        report(chars($0) " characters, want at most 100")
    }
    {
        line = $0
        sub(/^[ \t]*([*#>]|\/\*|\/\/)?[ \t]*/, "", line)
        if ((word = find(tail " " line)) != "")
            report("\"" word "\" is on the list of tests/prose.sh; use the standard term")
        # The last two words, unless the phrase they may begin is complete already.
        n = line == "" ? 0 : split(tail " " line, w, " ")
        tail = n > 1 ? w[n - 1] " " w[n] : n ? w[1] : ""
        if (find(tail) != "")
            tail = ""
    }
    END { exit bad }' "$@"
}

# check_subjects: reads "COMMIT SUBJECT" lines.
check_subjects() {
    awk '
    function report(what) { print "commit " id ": " what ": " subject; bad = 1 }
    {
        id = $1
        subject = substr($0, length(id) + 2)
        n = subject
        gsub(/[\200-\277]/, "", n)
        if (length(n) > 72)
            report("a subject of " length(n) " characters, want at most 72")
        if (subject !~ /^[A-Za-z0-9_.\/+-]+: [^ ]/)
            report("want a subject of the form \"area: what\"")
        if (subject ~ /;/)
            report("two changes in a subject (\";\"), want a commit for each")
    }
    END { exit bad }'
}

# subjects: the commits of this history since $base; none in a shallow clone or without git.
subjects() {
    [ "$(git rev-parse --is-shallow-repository 2>/dev/null)" = false ] || return 0
    git merge-base --is-ancestor $base HEAD 2>/dev/null || return 0
    git log --no-merges --format='%h %s' $base..HEAD
}

# expect NAME WANT: compares the places of the findings on standard input with WANT.
expect() {
    got=$(sed -n 's/^.*t\.\([a-z]*:[0-9]*\):.*/\1/p; s/^commit \([a-z0-9]*\):.*/\1/p' | tr '\n' ' ')
    [ "$got" = "$2" ] && return
    echo "prose.sh: self-test: $1: found '$got', want '$2'"
    return 1
}

self_test() {
    bad=0
    dir=$(mktemp -d) || exit 1
    trap 'rm -rf "$dir"' EXIT
    long=$(printf '%0101d' 0)
    umlauts=$(printf '%0100d' 0 | sed 's/0/\xc3\xa4/g')
    printf '%s\n' "$long" "$umlauts" "| $long" "http://$long" '```' "$long left alone" '```' \
        'It is Left alone.' 'a task for two' 'It goes' 'on and on.' 'It is what' 'is' 'there.' \
        'Weights are left alone' 'by it.' >"$dir/t.md"
    printf '%s\n' "/* $long" ' * The rows that are met' ' * by x. */' 'int came_of;' >"$dir/t.c"
    check_files "$dir/t.md" | expect markdown 'md:1 md:8 md:11 md:14 md:15 ' || bad=1
    check_files "$dir/t.c" | expect c 'c:3 ' || bad=1
    printf '%s\n' 'a1 docs: say it' "a2 docs: $long" 'a3 a change' 'a4 base: one; two' 'a5 base:x' \
        'a6 tools/check: run it' | check_subjects | expect subjects 'a2 a3 a4 a5 ' || bad=1
    return $bad
}

case ${1:-} in
--self-test) self_test ;;
'')
    [ -n "$files" ] || { echo 'prose.sh: git lists no files'; exit 1; }
    # shellcheck disable=SC2086
    check_files $files
    bad=$?
    subjects | check_subjects || bad=1
    exit $bad
    ;;
*) check_files "$@" ;;
esac
