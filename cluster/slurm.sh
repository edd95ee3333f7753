#!/usr/bin/env bash
# Slurm: starts Ray on the nodes of one allocation, runs one command there, ends Ray with it. From the root:
#   sbatch cluster/slurm.sh train --out ~/results/mine --set env_runners.num_env_runners=60
# The root must lie on a file system that all nodes share, with the environment in .venv (`make train` makes it), and so
# must the folder of the results. The token is in your home, readable by you alone; nothing listens for a browser.
#SBATCH --job-name=mermaide
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token OMP_NUM_THREADS=1
[ -s ~/.ray/auth_token ] || (umask 077; ray get-auth-token --generate > /dev/null)
chmod 600 ~/.ray/auth_token

# Ports and files of this job's own: another job may run Ray on the same node.
address="$(hostname --ip-address | cut -d ' ' -f 1):$((20000 + SLURM_JOB_ID % 10000))"
common=(--disable-usage-stats --block)
trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT
trap 'exit 143' TERM

# The head works for the cluster alone; the first node runs a worker beside it like every other.
ray start --head --num-cpus=0 --node-ip-address="${address%:*}" --port="${address#*:}" --ray-client-server-port=0 \
    --include-dashboard=false --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${common[@]}" > "ray-head-$SLURM_JOB_ID.log" 2>&1 &
for attempt in $(seq 60); do
    ray health-check --address "$address" 2> /dev/null && break
    [ "$attempt" -lt 60 ] || { echo "Ray's head must start within a minute or two, see ray-head-$SLURM_JOB_ID.log" >&2; exit 1; }
    sleep 1
done
# srun takes no notice of sbatch's --cpus-per-task (Slurm 22.05 and later): without, a worker would have one CPU.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
    ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" "${common[@]}" > "ray-workers-$SLURM_JOB_ID.log" 2>&1 &

# In the background, so that bash can hear a TERM meanwhile; `mermaide` waits by itself for the workers that it needs.
RAY_ADDRESS="$address" mermaide "$@" &
wait $!
