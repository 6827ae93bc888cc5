#!/usr/bin/env bash
# steps.sh TARGET... : runs make targets one after the other, all of them whatever fails, each into
# .cache/steps/TARGET.log as well; ends with their times and the number of tests. Exit status 1 where one failed.
set -uo pipefail
cd "$(dirname "$0")/../.."

logs=.cache/steps
mkdir -p "$logs"
rm -f "$logs"/*.log
table=() failed=0 begun=$SECONDS
for step in "$@"; do
    printf '\n== %s\n' "$step"
    start=$SECONDS
    if ${MAKE:-make} "$step" 2>&1 | tee "$logs/$step.log"; then word=ok; else word=FAILED failed=$((failed + 1)); fi
    table+=("$(printf '%-10s %-7s %5d s' "$step" "$word" $((SECONDS - start)))")
done

printf '\n'
printf '%s\n' "${table[@]}"
printf '%-10s %-7s %5d s\n' all "$([ $failed = 0 ] && echo ok || echo FAILED)" $((SECONDS - begun))

# Closing lines of nextest ("Summary [...] 10 tests run: 10 passed, 1 failed, 0 skipped"), of cargo test
# ("test result: ok. 10 passed; 0 failed") and of our own checks ("10 passed, 0 failed").
# A step that failed without a failed test counts as one.
sed 's/\x1b\[[0-9;]*m//g' "$logs"/*.log | awk -v steps="$failed" '
    /^ *Summary \[|^test result: |^[0-9]+ passed, [0-9]+ failed$/ {
        if (match($0, /[0-9]+ passed/)) passed += substr($0, RSTART)
        if (match($0, /[0-9]+ failed/)) failed += substr($0, RSTART)
    }
    END { if (failed == 0) failed = steps; if (passed + failed) printf "\n%d passed, %d failed\n", passed, failed }'
exit $((failed > 0))
