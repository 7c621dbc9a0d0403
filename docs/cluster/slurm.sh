#!/bin/bash
# Slurm, on 4 machines of 8 GPUs: sbatch slurm.sh
# After a preemption or a lost machine, Slurm starts the job again, and the run continues from its last checkpoint.
#SBATCH --job-name=alexnet --nodes=4 --ntasks-per-node=1 --gpus-per-node=8
#SBATCH --requeue --signal=TERM@60 --time=24:00:00
set -euo pipefail
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "$host:29400" --max-restarts 10 \
    -m -- alexnet train /shared/store --output-dir /shared/my-run
