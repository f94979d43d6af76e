#!/usr/bin/env bash
# One run on several machines under Slurm, which all see this folder and the cache (docs/scale.md):
#
#     RUN_DIR=runs/mine sbatch tools/sbatch_example.sh --gin_file gin/run/icons.gin --gin_file gin/policy/jest.gin
#
# Two minutes before its time is over the run writes a checkpoint and ends, and the job is queued again; so it is where a
# machine fails. The next job goes on with the run, on as many processes as it has.
#
# People change: the lines #SBATCH, PROCESSES (of each machine; one for each GPU), PORT.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -u
requeue=
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}" \
    --rdzv_backend=c10d --rdzv_endpoint="$first:${PORT:-29500}" --rdzv_id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    tools/run.py "$@" --run_dir "${RUN_DIR:-runs/job$SLURM_JOB_ID}" --resume &
step=$!
trap 'requeue=yes; kill -TERM $step' USR1 # the time is over soon
trap 'kill -TERM $step' TERM              # scancel, or a preemption, after which Slurm queues the job itself
until wait $step; status=$?; ! kill -0 $step 2>/dev/null; do
    : # a signal has ended wait, and not yet the run
done
if [ -n "$requeue" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
