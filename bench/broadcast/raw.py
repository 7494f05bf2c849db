"""The measurement of crates/collective/examples/bandwidth.rs through torch.distributed: same sizes, rounds and output."""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZES = [1 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20]
VOLUME = 1 << 30
PATIENCE = timedelta(seconds=60)


def measure(name, world_size, size, operation):
    tensor = torch.zeros(size // 4)
    rounds = min(max(VOLUME // size, 4), 3000)
    for _ in range(-(-rounds // 10)):
        operation(tensor)
    dist.barrier()
    start = time.perf_counter()
    for _ in range(rounds):
        operation(tensor)
    dist.barrier()
    each = (time.perf_counter() - start) / rounds
    if dist.get_rank() == 0:
        print(f"{name}\t{world_size}\t{size}\t{each * 1e6:.1f}\t{size / each / 1e9:.3f}", flush=True)


def rank(own, world_size, port):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE)
    dist.init_process_group("gloo", store=store, rank=own, world_size=world_size, timeout=PATIENCE)
    for size in SIZES:
        measure("broadcast", world_size, size, lambda tensor: dist.broadcast(tensor, 0))
        measure("all_reduce", world_size, size, dist.all_reduce)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for world_size in [int(ranks) for ranks in sys.argv[1:]] or [2, 3]:
        server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        mp.spawn(rank, args=(world_size, server.port), nprocs=world_size)
