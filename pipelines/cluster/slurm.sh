#!/bin/bash
# A round as a SLURM job array over a run folder that all nodes see:
#     sbatch --array=0-15 pipelines/cluster/slurm.sh 'lists/*.parquet' --run /shared/runs/mine
# Each job does its slice, then what others have left; the last one there writes the export. A job
# that is killed or cannot begin holds nobody up. Give a model, a policy and the rest as usual.
#SBATCH --job-name=capfilt
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --output=capfilt-%A-%a.log

exec "${CAPFILT:-capfilt}" run "$@" --engine ranks --quiet
