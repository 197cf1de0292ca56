"""Three lines that run everywhere, and on a Gaudi cost a copy, a broken graph, or an error.

python docs/examples/hidden_host_work.py
HPU_EMULATOR_STRICT=1 python docs/examples/hidden_host_work.py
"""

import torch

scores = torch.tensor([0.25, 0.5, 1.0], device="hpu")
lines = {
    "a CPU scalar": lambda: scores / torch.tensor(0.5),
    "a boolean index": lambda: scores[scores > 0.3],
    "float64": lambda: scores.double() * 2,
}
for name, line in lines.items():
    try:
        print(f"{name}: {line().tolist()}")
    except RuntimeError as error:
        print(f"{name}: {str(error).splitlines()[0]}")
