"""A loss over all rows at once needs more memory than the card has; row by row it fits, with the same gradient.

HPU_EMULATOR_MEMORY=24MiB python docs/examples/out_of_memory.py
HPU_EMULATOR_MEMORY=24MiB python docs/examples/out_of_memory.py --rows_at_once 1
"""

import argparse

import torch
from torch.nn.functional import cross_entropy

ROWS, TOKENS, VOCABULARY = 8, 128, 4000

parser = argparse.ArgumentParser()
parser.add_argument("--rows_at_once", type=int, default=ROWS)
rows_at_once = parser.parse_args().rows_at_once

torch.manual_seed(0)
head = torch.nn.Linear(32, VOCABULARY, bias=False).to("hpu")
hidden = torch.randn(ROWS, TOKENS, 32).to("hpu")
targets = torch.randint(VOCABULARY, (ROWS, TOKENS)).to("hpu")
print(f"before the loss: {torch.hpu.memory_allocated() / 2**20:.1f} MiB in use")

total = 0.0
for first in range(0, ROWS, rows_at_once):
    rows = slice(first, first + rows_at_once)
    logits = head(hidden[rows])  # [rows, 128, 4000] in fp32: 2 MB a row, and cross_entropy keeps another copy
    loss = cross_entropy(logits.flatten(0, 1), targets[rows].flatten(), reduction="sum") / targets.numel()
    loss.backward()
    total += loss.item()
    del logits, loss

peak = torch.hpu.max_memory_allocated() / 2**20
print(f"loss {total:.4f}, gradient norm {head.weight.grad.norm().item():.4f}, peak {peak:.1f} MiB")
