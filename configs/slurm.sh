#!/bin/bash
# Three nodes of four GPUs; SLURM warns five minutes before the time is up, the run saves itself and is queued again.
#SBATCH --job-name=pretrain
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 bash -c "accelerate launch \
    --config_file configs/several_nodes.yaml \
    --num_machines $SLURM_NNODES \
    --num_processes $((SLURM_NNODES * 4)) \
    --machine_rank \$SLURM_NODEID \
    --main_process_ip $HEAD \
    -m geneformer_repro pretrain cells.tok --config configs/v1.toml -o runs/base"

# Not finished: runs/base.partial is there, and the same command goes on from it.
[ -d runs/base.partial ] && scontrol requeue "$SLURM_JOB_ID"
