#!/usr/bin/env bash
# Puts empty libraries where a CUDA build of torch looks for NVIDIA's, so that its CPU part can be imported without them.
#
#   bash tests/oldest/cuda_stand_ins.sh .venv-oldest/lib/python3.10/site-packages/torch/lib
#
# Old versions of torch for Linux are published with CUDA only. Every function answers 100, which is "no device".
set -euo pipefail
cd "$1"
[ -e libtorch_cuda.so ] || exit 0
find . -lname stand_ins.so -delete  # those of an installation before this one
ours='(cu|nccl|nv)'
sonames=$(for library in lib*.so*; do readelf -d "$library"; done \
    | sed -n -E "s/.*\(NEEDED\).*\[(lib$ours.*)\]/\1/p" | sort -u)
symbols() { nm -D "$1" lib*.so* | awk "$2" | sed 's/@.*//' | sort -u; }
comm -23 <(symbols --undefined-only '$1 == "U" {print $2}') <(symbols --defined-only '{print $3}') \
    | grep -E '^(__cuda|cu|nccl|nvrtc|nvtx)' | sed 's/.*/int &(void) { return 100; }/' > stand_ins.c
# The loader refuses a library that does not name the versions that others want of it.
for library in lib*.so*; do readelf -W -V "$library"; done | grep -oE "Name: lib$ours\S*" | sort -u \
    | awk '{name = $2; gsub(/[^A-Za-z0-9]+/, "_"); print name " { " $0 "; };"}' > stand_ins.map
gcc -shared -fPIC -w -fno-builtin -Wl,--version-script=stand_ins.map -o stand_ins.so stand_ins.c
for soname in $sonames; do
    [ -e "$soname" ] || ln -s stand_ins.so "$soname"
done
