"""Builds habana_torch_plugin_emulator._C against the installed torch; pyproject.toml says the rest."""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        f"habana-torch-plugin-emulator is compiled against the torch that is installed, and none was found ({error}).\n"
        "Install torch first, then: pip install --no-build-isolation ./hpu_emulator"
    )

TESTED = ("2.13.0",)
OLDEST = (2, 6)

version = torch.__version__.split("+")[0]
if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
    sys.exit(f"habana-torch-plugin-emulator needs torch >= 2.6, found {torch.__version__}")
if version not in TESTED:
    print(
        f"warning: the emulator was tested with torch {', '.join(TESTED)}, not with {version}",
        file=sys.stderr,
    )

os.environ.setdefault("MAX_JOBS", "1")
root = Path(__file__).resolve().parent
sources = sorted(str(path.relative_to(root)) for path in (root / "csrc").glob("*.cpp"))

setup(
    ext_modules=[
        CppExtension(
            "habana_torch_plugin_emulator._C",
            sources,
            include_dirs=[str(root / "csrc")],
            depends=sorted(str(path.relative_to(root)) for path in (root / "csrc").glob("*.h")),
            extra_compile_args=["-O2", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"],
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
