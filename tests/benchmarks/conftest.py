"""The benchmark's modules can be imported as its own program imports them."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS / "speed"))
sys.path.append(str(BENCHMARKS))  # memory.py, whose row stands in the same table
