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

# Runs DataComp's train.py on a subset of the original shards (or with weights), without resharding.
# It replaces slurm_train.sh of a DataComp checkout. There is one task per GPU. Run it in the checkout,
# in an environment that has datacomp-flyt too; fill in the values in <> and the paths below.

set -euo pipefail

DATA_PATH="/path/to/shards"            # written by download_upstream.py
SUBSET="/path/to/subset.npy"           # written by `baselines.py --name m_flyt` or another selection
SCALE="small"
SEED=0
OUTPUT_DIR="/path/to/output/dir"
NUM_CHECKPOINTS=8
EXP_NAME="datacomp-scale-${SCALE}-seed${SEED}"
PRECISION="amp_bfloat16"               # amp if the hardware has no bfloat16
TRAIN_PY="train.py"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 50000))  # two jobs may share a node
export MASTER_ADDR MASTER_PORT

# --weights W.parquet may replace --subset or be added to it, and so may --distinct_in_batch: see
# docs/train_clip.md. A run for DataComp's leaderboard has neither (docs/submit.md). A rank that stops
# must stop the others, and newer releases of Slurm do not pass on --cpus-per-task by themselves.
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
