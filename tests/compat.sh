#!/usr/bin/env bash
# Runs the fast tests in a fresh environment: `tests/compat.sh oldest` takes each dependency of pyproject.toml at its lower
# bound, `tests/compat.sh newest` at the newest release that the bounds allow. Further arguments go to pytest. It takes
# gigabytes in a temporary folder; UV_TORCH_BACKEND=cpu makes it a torch without CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    oldest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) echo "usage: tests/compat.sh oldest|newest [arguments of pytest]" >&2 && exit 2 ;;
esac
shift

venv=$(mktemp -d)/venv
trap 'rm -rf "$(dirname "$venv")"' EXIT
python3 -m venv "$venv"
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"

pip install --quiet uv
uv pip install --quiet --resolution "$resolution" -e '.[test]'
uv pip list | grep -E '^(bitsandbytes|datasets|jsonargparse|lightning|peft|torch|torchmetrics|transformers) '
pytest -m 'not slow' -p no:cacheprovider "$@"
