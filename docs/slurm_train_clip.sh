#!/bin/bash
#SBATCH --partition=<partition_name>
#SBATCH --job-name=<job_name>
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=6
#SBATCH --output=%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue

# DataComp's train.py on a subset (or weights) of the pool's own shards, with no resharding: what
# slurm_train.sh of a DataComp checkout is without the hook. One task a GPU. Run it in the checkout,
# in an environment that has datacomp-flyt too; fill in what is in <> and the paths below.

set -euo pipefail

DATA_PATH="/path/to/shards"            # as download_upstream.py left them
SUBSET="/path/to/subset.npy"           # of `baselines.py --name m_flyt` and the like
SCALE="small"
SEED=0
OUTPUT_DIR="/path/to/output/dir"
NUM_CHECKPOINTS=8
EXP_NAME="datacomp-scale-${SCALE}-seed${SEED}"
PRECISION="amp_bfloat16"               # amp where the hardware has no bfloat16
TRAIN_PY="train.py"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 50000))  # two jobs may share a node
export MASTER_ADDR MASTER_PORT

# --weights W.parquet in place of --subset, or with it, and --distinct_in_batch: see
# docs/train_clip.md. A run for DataComp's leaderboard has neither (docs/submit.md).
# one rank that stops must stop the others; newer Slurm does not hand the cpus on by itself
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=v --accel-bind=gn \
    python -m datacomp_flyt.cli train_clip \
    --subset "${SUBSET}" \
    -- "${TRAIN_PY}" \
    --scale "${SCALE}" \
    --data_dir "${DATA_PATH}" \
    --output_dir "${OUTPUT_DIR}" \
    --exp_name "${EXP_NAME}" \
    --precision "${PRECISION}" \
    --num_checkpoints "${NUM_CHECKPOINTS}" \
    --seed "${SEED}" \
    --accum_freq 1 \
    --report_to_wandb
