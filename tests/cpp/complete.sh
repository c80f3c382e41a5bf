#!/bin/sh
# Whether the C++ header uses all of the C interface: every function and every option, but those that are named here.
set -eu
cd "$(dirname "$0")/../.."
header=include/httpdown.h wrapper=bindings/cpp/httpdown.hpp

# Why not: value initialization makes structs of zeros; `stop` begins the stop and waits; the header has the type of
# texts, and compares them; `reply_text` is `reply` with a header field; a constant of the C header tells the version.
# `reserved` is for an option to come.
unused="httpdown_options_init httpdown_tls_init httpdown_restart_options_init httpdown_stop httpdown_reply_text httpdown_str httpdown_bytes_equal
    httpdown_version"

missing=
functions=$(sed 's|//.*||' $header | grep -o '\bhttpdown_[a-z0-9_]*(' | tr -d '(' | sort -u)
for name in $functions; do
    # Not in a comment.
    if sed 's|//.*||' $wrapper | grep -q "\b$name\b"; then
        case " $(echo $unused) " in *" $name "*) missing="$missing $name(used)" ;; esac
    else
        case " $(echo $unused) " in *" $name "*) ;; *) missing="$missing $name" ;; esac
    fi
done
options=$(sed -n '/^typedef struct {/,/^} /p' $header | awk '/^typedef/ { text = "" } { text = text "\n" $0 }
    /^} httpdown_options;/ { print text }' | sed 's|//.*||' | grep -o '[a-z0-9_]*;$' | tr -d ';' |
    grep -v -e '^httpdown_options$' -e '^reserved$')
for name in $options; do
    grep -q "raw_\.$name\b" $wrapper || missing="$missing options.$name"
done
[ "$(echo "$functions" | wc -l)" -gt 60 ] && [ "$(echo "$options" | wc -l)" -gt 30 ] || {
    echo "the C header is not understood"
    exit 1
}
[ -z "$missing" ] || { echo "$wrapper does not agree with $header:$missing"; exit 1; }
