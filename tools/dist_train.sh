#!/usr/bin/env bash
# Train on one machine or several: bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: NNODES=2 NODE_RANK=0 MASTER_ADDR=first-node PORT=29500, the same on each but NODE_RANK.
# RESTARTS=3 with --resume: processes that die are restarted, up to three times, from the last checkpoint.
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}

if [ "${RESTARTS:-0}" != 0 ]; then
    # machines must agree on when to restart: fixed ranks cannot
    meeting=(--rdzv_backend=c10d --rdzv_endpoint="$address:$port" --rdzv_id="${JOB_ID:-repnext_mm}")
    if [ "${NNODES:-1}" = 1 ]; then
        meeting+=(--local_addr="$address")
    fi
    # the launcher's own store survives a restart (PyTorch 2.11), and with it the addresses of dead
    # processes, which the new ones call: let the first process open a new one each time
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
else
    meeting=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --nproc_per_node="$gpus" \
    --max_restarts="${RESTARTS:-0}" \
    "${meeting[@]}" \
    "$here/train.py" "$config" --launcher pytorch "$@"
