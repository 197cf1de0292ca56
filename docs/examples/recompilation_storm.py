"""A training loop in which every batch has a shape of its own, and the same loop with three widths.

HPU_EMULATOR_GRAPHS=1 python docs/examples/recompilation_storm.py
HPU_EMULATOR_GRAPHS=1 python docs/examples/recompilation_storm.py --widths 16 24 32
"""

import argparse
import random

import habana_frameworks.torch.core as htcore
import torch
from torch.nn.functional import cross_entropy, pad

PADDING = 0


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 16)
        self.head = torch.nn.Linear(16, 64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens))


parser = argparse.ArgumentParser()
parser.add_argument("--widths", type=int, nargs="*", default=[])
widths = parser.parse_args().widths

torch.manual_seed(0)
lengths = random.Random(0)
model = Model().to("hpu")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(12):
    length = lengths.randint(10, 32)
    batch = torch.randint(1, 64, (4, length))
    if widths:
        batch = pad(batch, (0, min(w for w in widths if w >= length) - length), value=PADDING)
    batch = batch.to("hpu")
    logits = model(batch[:, :-1])
    loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=PADDING)
    loss.backward()
    htcore.mark_step()
    optimizer.step()
    optimizer.zero_grad()
    htcore.mark_step()
