#!/bin/sh
# Restarts a peer as its documentation says, and ends when that is done. PID is that of its main process.
#   restart.sh upgrade PID SIGNAL...   USR2 starts a second main process with workers of its own. Then the first one gets
#                                      the signals; its workers have ended before the next signal. Prints "pid N".
#   restart.sh reload PID SIGNAL       the main process replaces its workers, and stays
#   restart.sh touch PID FILE          the same, because a file has changed
how=$1 pid=$2
shift 2

# Of a process, without the helper that Python's multiprocessing starts once.
children() {
    for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        grep -q resource_tracker "/proc/$child/cmdline" 2>/dev/null || echo "$child"
    done
}
before=$(children "$pid")
is_before() { case " $(echo $before) " in *" $1 "*) ;; *) false ;; esac }
others() { for child in $(children "$pid"); do is_before "$child" || echo "$child"; done; }
old_ones() { for child in $(children "$pid"); do ! is_before "$child" || echo "$child"; done; }
replaced() { [ -n "$(others)" ] && [ -z "$(old_ones)" ]; }
until_true() { until "$@"; do sleep 0.01; done; }

case $how in
upgrade)
    tries=0
    new_one_has_workers() {
        # gunicorn takes a second to see that its predecessor has ended, and ignores the signal meanwhile.
        [ $((tries % 100)) -gt 0 ] || [ -n "$(others)" ] || kill -USR2 "$pid"
        tries=$((tries + 1))
        new=$(others) && [ -n "$new" ] && [ "$(children "$new" | wc -l)" -ge 2 ]
    }
    until_true new_one_has_workers
    no_old_ones() { [ -z "$(old_ones)" ]; }
    echo "pid $new"
    for signal; do
        kill "-$signal" "$pid" || exit
        until_true no_old_ones
    done
    ;;
reload)
    kill "-$1" "$pid" || exit
    until_true replaced
    ;;
touch)
    touch "$1" || exit
    until_true replaced
    ;;
esac
