#!/usr/bin/env bash
# Train on one machine or several: bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: NNODES=2 NODE_RANK=0 MASTER_ADDR=first-node PORT=29500, the same on each but NODE_RANK.
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --nproc_per_node="$gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    "$here/train.py" "$config" --launcher pytorch "$@"
