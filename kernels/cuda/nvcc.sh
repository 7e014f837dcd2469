#!/bin/sh
# SPDX-License-Identifier: MIT
# nvcc.sh LOG NVCC ARGUMENT...: compiles, and leaves in LOG what ptxas says of each kernel's registers, for tools/dev/cuda-resources.
# Only errors are printed.
log=$1
shift
"$@" -Xptxas -v 2>"$log" && exit 0
status=$?
cat "$log" >&2
exit $status
