#!/usr/bin/env bash
# Installs the wheels that wheels.sh collected into a folder of its own, without a network, and runs h100.py there:
#   tests/benchmarks/h100.sh WHEELS [arguments of h100.py]
# Not a virtual environment: one that is made within another does not see that one's torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$1"/*.whl
export PYTHONPATH=$site:$PWD
python3 tests/benchmarks/h100.py "${@:2}"
