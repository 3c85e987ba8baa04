#!/usr/bin/env bash
# Renew requirements/locked/: version and hashes of what tools/setup_env.py installs, and of the page in the
# browser in that environment (needs uv: pip install uv).
# Versions stay as they are where requirements/*.txt allow it; --upgrade takes the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lock() {  # LANE, first Python 3.x that it is not for, options of uv
    local lane=$1 end=$2
    shift 2
    cat >"$work/pyproject.toml" <<TOML
[tool.uv]
environments = ["python_version < '3.$end' and sys_platform == 'linux' and platform_machine == 'x86_64' and platform_python_implementation == 'CPython'"]
TOML
    local compile=(uv --project "$work" pip compile --quiet --universal --python-version 3.10 --generate-hashes
        --no-annotate --custom-compile-command 'make lock' --build-constraints build.txt "$@")
    [[ $lane != onedl ]] || compile+=(--overrides overrides.txt)
    "${compile[@]}" --output-file "locked/$lane.txt" \
        "torch-$lane.txt" build.txt "$lane.txt" digits.txt export.txt cam.txt dev.txt
    "${compile[@]}" --constraints "locked/$lane.txt" --output-file "locked/demo-$lane.txt" demo.txt
}

lock onedl 15 "$@"
lock openmmlab 12 "$@"
