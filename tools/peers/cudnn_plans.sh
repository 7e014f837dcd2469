#!/bin/bash
# SPDX-License-Identifier: MIT
# Check the plans of attention (kernels/cuda/lib/cuda_plan.cu) with the real cuDNN, without a GPU: constants against its header,
# and whether it has a plan for the supported models on an H100 and an H200. Nothing is executed.
# PYTHON=v/bin/python tools/peers/cudnn_plans.sh BUILD: v has nvidia-cudnn-cu13, nvidia-cuda-nvrtc and -runtime, BUILD is a build directory.
# Without a driver, a stand-in takes its place, made from the names in the CUDA toolkit's stub: cuDNN loads one to finish a plan.
# Exits with 1 if a constant differs or a plan is missing, and with 77 if cuDNN, its header or the toolkit is missing.
set -u
cd "$(dirname "$0")/../.." || exit 1
[ $# = 1 ] || { echo 'usage: tools/peers/cudnn_plans.sh BUILD' >&2; exit 2; }
missing() {
    echo "cudnn_plans.sh: $1 not found" >&2
    exit 77
}
nvidia=$("${PYTHON:-python3}" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null) || missing 'Python with nvidia-cudnn-cu13'
library=$nvidia/cudnn/lib/libcudnn.so.9
[ -e "$library" ] || missing "$library"
program=$1/tests/kernels/cudnn_plans
[ -x "$program" ] || missing "$program"
runtime=$nvidia/cu13/include
[ -e "$runtime/cuda_runtime.h" ] || runtime=/usr/local/cuda/include
[ -e "$runtime/cuda_runtime.h" ] || missing cuda_runtime.h
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

${CXX:-g++} -std=c++17 -fsyntax-only -Wno-deprecated-declarations -I . -I "$nvidia/cudnn/include" -I "$runtime" \
    tests/kernels/cudnn_values.cc || exit 1
echo 'constants: those of the header'

if ! ldconfig -p | grep -q libcuda.so.1; then
    stub=$(find /usr/local/cuda/ -path '*stubs/libcuda.so' 2>/dev/null | head -1)
    [ -n "$stub" ] || missing "a driver, or the CUDA toolkit's stub of one,"
    # It has no device, but a version and its functions. Loading a kernel gives something, and all else succeeds.
    {
        echo '#include <dlfcn.h>'
        echo 'int cuDriverGetVersion(int *v) { *v = 13000; return 0; }'
        for name in cuGetProcAddress cuGetProcAddress_v2; do
            echo "int $name(const char *s, void **p) { *p = dlsym(dlopen(\"libcuda.so.1\", RTLD_NOW), s); return *p ? 0 : 500; }"
        done
        nm -D --defined-only "$stub" | awk '$3 ~ /^cu(Library|Module)(LoadData|GetKernel|GetFunction)|^cuKernelGetFunction/ {
            print "int " $3 "(void **p) { *p = p; return 0; }"
            next
        }
        $3 ~ /^cu/ && $3 !~ /^cu(DriverGetVersion|GetProcAddress)/ {
            print "int " $3 "(void) { return " ($3 == "cuInit" ? 100 : $3 == "cuGetExportTable" ? 500 : 0) "; }"
        }'
    } >"$dir/driver.c"
    ${CC:-gcc} -w -shared -fPIC -o "$dir/libcuda.so.1" "$dir/driver.c" || exit 1
    echo 'driver: a stand-in'
fi
LD_LIBRARY_PATH=$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$program" "$library"
