#!/bin/bash
# sbatch examples/distributed/slurm.sh runs/first/config.json
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 4 --rdzv_backend c10d \
  --rdzv_endpoint "$main:29500" --rdzv_id "$SLURM_JOB_ID" \
  -m resnet_ft train --config "$1"
