#!/usr/bin/env bash
# Collects the wheels that h100.sh needs beside torch, transformers, pandas and pyarrow, for a machine with x86-64, CUDA 13
# and no network:   tests/benchmarks/wheels.sh [DIR]     (PYTHON=3.12, the version of Python there)
# bitsandbytes is left with its libraries for CUDA 13.0 and the CPU. Fails above 64 MiB.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.wheels}
python=${PYTHON:-3.12}

packages=(
    'bitsandbytes>=0.49,<0.51' 'lightning>=2.6,<2.7' 'peft>=0.20,<0.22' 'torchmetrics<2' 'torchdata<0.12' 'jsonargparse<5'
    'datasets<6' 'trl==1.16.0' 'pytest<10' 'pytest-xdist' 'hypothesis<7'
    # what these need beyond torch and transformers
    pytorch-lightning==2.6.* lightning-utilities accelerate psutil requests certifi urllib3 charset-normalizer
    docstring-parser typeshed-client 'dill<0.4.2' 'multiprocess<0.70.20' xxhash iniconfig pluggy execnet sortedcontainers
)
platforms=(--platform manylinux1_x86_64)
for glibc in 2014 _2_5 _2_12 _2_17 _2_24 _2_27 _2_28; do platforms+=(--platform "manylinux${glibc}_x86_64"); done

rm -rf "$folder"
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python" \
    "${platforms[@]}" --dest "$folder" "${packages[@]}"
python3 - "$folder"/bitsandbytes-*.whl <<'PYTHON'
import sys, zipfile
from pathlib import Path

wheel, slim = Path(sys.argv[1]), Path(sys.argv[1] + ".slim")
kept = ("libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so")
with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as less:
    for name in whole.namelist():
        if not name.endswith(".so") or name.endswith(kept):
            less.writestr(name, whole.read(name))
slim.rename(wheel)
PYTHON
size=$(du -sb "$folder" | cut -f1)
echo "$(ls "$folder" | wc -l) wheels in $folder: $((size / 1024 / 1024)) MiB"
((size <= 64 * 1024 * 1024)) || { echo "more than 64 MiB" >&2; exit 1; }
