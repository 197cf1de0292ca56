"""A forward pass with a tensor on the wrong device: found on the emulator, invisible on a CPU.

python docs/examples/device_mixing.py hpu             the bug
python docs/examples/device_mixing.py hpu --mended    without it
python docs/examples/device_mixing.py cpu             … and why nobody noticed
"""

import argparse

import torch


class Bias(torch.nn.Module):
    """Adds to each attention score a penalty that grows with the distance between the two tokens."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.mended = mended
        self.slope = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [T, T] → scores [T, T]."""
        device = scores.device if self.mended else None  # None: where torch makes tensors by default, the CPU
        places = torch.arange(scores.shape[-1], device=device)
        distance = (places[:, None] - places).abs()
        return scores - self.slope * distance


parser = argparse.ArgumentParser()
parser.add_argument("device")
parser.add_argument("--mended", action="store_true")
arguments = parser.parse_args()

model = Bias(arguments.mended).to(arguments.device)
loss = model(torch.ones(4, 4, device=arguments.device)).sum()
loss.backward()
print(f"on {loss.device}: loss {loss.item():.2f}, gradient {model.slope.grad.item():.2f}")
