"""Which versions work together: the facts behind `rlhf-hw doctor`, as pure functions of installed versions.

Retired rule by rule, when pyproject.toml no longer admits the older side of it. Each fact was read in the
metadata or the imports of the release it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@dataclass(frozen=True)
class Rule:
    """A `package` at a version in `when` needs `other` at a version in `needs`, if `other` is there."""

    package: str
    when: str
    other: str
    needs: str
    reason: str
    cure: str


@dataclass(frozen=True)
class Clash:
    """Something that does not fit together: what was found, why it fails, and what to do."""

    found: str
    reason: str
    cure: str


@dataclass(frozen=True)
class TorchBuild:
    """What the installed torch was built for. `cuda`: its CUDA version, None in a build without."""

    version: str
    cuda: str | None
    sees_gpu: bool


#: What this project needs, as in pyproject.toml (a test holds the two together).
REQUIREMENTS = {
    "torch": ">=2.6",
    "transformers": ">=4.55,<6",
    "trl": ">=0.22.2,<2",
    "accelerate": ">=1.7,<2",
    "peft": ">=0.17,<1",
    "datasets": ">=5,<6",
    "tokenizers": ">=0.21",
    "safetensors": ">=0.5",
    "numpy": ">=1.26",
    "matplotlib": ">=3.8",
    "PyYAML": ">=6",
    "rich": ">=13",
    "jinja2": ">=3.1",
    "psutil": ">=5.9",
    "packaging": ">=23",
    "tqdm": ">=4.66",
}

_HABANA_PINS = "the last optimum-habana is pinned to it"
_HABANA_CURE = "install requirements-hpu.txt as a whole, or remove optimum-habana where there is no Gaudi"
_UPGRADE = "install requirements-cuda.txt as a whole"

RULES = (
    Rule("optimum-habana", "==1.21.2", "transformers", ">=4.55,<4.56", _HABANA_PINS, _HABANA_CURE),
    Rule("optimum-habana", "==1.21.2", "accelerate", ">=1.7,<=1.10.1", _HABANA_PINS, _HABANA_CURE),
    Rule("optimum-habana", "==1.21.2", "optimum", ">=2.0,<2.1", _HABANA_PINS, _HABANA_CURE),
    Rule(
        "optimum-habana",
        "==1.21.2",
        "trl",
        "<0.23",
        "later TRL needs a transformers that optimum-habana refuses",
        _HABANA_CURE,
    ),
    Rule(
        "trl",
        ">=0.23",
        "transformers",
        ">=4.56.1",
        "TRL declares it",
        f"{_UPGRADE}, or pip install trl==0.22.2",
    ),
    Rule(
        "trl",
        ">=1.16",
        "transformers",
        ">=4.56.2",
        "TRL declares it",
        f"{_UPGRADE}, or pip install trl==0.22.2",
    ),
    Rule("trl", ">=1.16", "datasets", ">=4.7", "TRL declares it", "pip install 'datasets>=4.7'"),
    Rule("trl", ">=1.15", "python", ">=3.11", "TRL declares it", "use Python 3.11 or later, or trl==0.22.2"),
    Rule(
        "transformers",
        ">=5.21",
        "python",
        ">=3.11",
        "transformers declares it",
        "use Python 3.11 or later, or transformers<5.21",
    ),
    Rule(
        "transformers",
        ">=5",
        "peft",
        ">=0.18",
        "earlier peft imports HybridCache, which transformers 5 removed",
        "pip install -U peft",
    ),
    Rule(
        "transformers",
        ">=5.23",
        "peft",
        ">=0.20",
        "transformers refuses earlier peft when it loads adapters",
        "pip install -U peft",
    ),
    Rule(
        "transformers",
        ">=5",
        "bitsandbytes",
        ">=0.46.1",
        "transformers ignores earlier bitsandbytes",
        "pip install -U bitsandbytes",
    ),
    Rule("transformers", ">=5", "huggingface_hub", ">=1.0", "transformers declares it", _UPGRADE),
    Rule(
        "transformers",
        "<5",
        "huggingface_hub",
        "<1.0",
        "transformers 4 checks it when imported",
        "pip install 'huggingface_hub<1.0'",
    ),
    Rule(
        "transformers",
        ">=4.55,<4.56",
        "tokenizers",
        ">=0.21,<0.22",
        "transformers checks it when imported",
        "pip install 'tokenizers>=0.21,<0.22'",
    ),
    Rule(
        "transformers",
        ">=5.23,<5.24",
        "tokenizers",
        ">=0.23.1,<0.24",
        "transformers checks it when imported",
        "pip install 'tokenizers>=0.23.1,<0.24'",
    ),
    Rule(
        "numpy",
        ">=2",
        "pyarrow",
        ">=16",
        "earlier pyarrow was compiled against numpy 1 and fails when imported",
        "pip install -U pyarrow, or 'numpy<2'",
    ),
    Rule("datasets", ">=5,<5.2", "pyarrow", ">=21", "datasets declares it", "pip install -U pyarrow"),
    Rule("datasets", ">=5.2", "pyarrow", ">=24", "datasets declares it", "pip install -U pyarrow"),
)

#: Every package that a rule or a requirement speaks of, without "python".
PACKAGES = tuple(
    dict.fromkeys(
        name
        for name in (*REQUIREMENTS, *(name for rule in RULES for name in (rule.package, rule.other)))
        if name != "python"
    )
)


def version_clashes(installed: Mapping[str, str]) -> list[Clash]:
    """Clashes among installed versions, given as {"python": "3.11.7", "torch": "2.13.0+cpu", …}.

    A package that is absent from `installed` is not installed: a clash where this project needs it.
    """
    clashes = []
    for package, needs in REQUIREMENTS.items():
        found = installed.get(package)
        cure = f"pip install '{package}{needs}'"
        if found is None:
            clashes.append(Clash(f"{package} is not installed", f"this project needs {package}{needs}", cure))
        elif not _satisfies(found, needs):
            clashes.append(Clash(f"{package} {found}", f"this project needs {package}{needs}", cure))
    for rule in RULES:
        version, other = installed.get(rule.package), installed.get(rule.other)
        if version is None or other is None or not _satisfies(version, rule.when):
            continue
        if not _satisfies(other, rule.needs):
            found = f"{rule.package} {version} with {rule.other} {other}"
            needs = f"{rule.package} {version} needs {rule.other}{rule.needs}: {rule.reason}"
            clashes.append(Clash(found, needs, rule.cure))
    return clashes


def build_clashes(build: TorchBuild | None, nvidia_gpus: int) -> list[Clash]:
    """Clashes between the machine's visible NVIDIA GPUs and the installed torch (None: not installed)."""
    if build is None or nvidia_gpus == 0 or build.sees_gpu:
        return []
    if build.cuda is None:
        return [
            Clash(
                f"{nvidia_gpus} NVIDIA GPU(s), torch {build.version}",
                "this torch is a build without CUDA and will train on the CPU",
                "install the CUDA build (pytorch.org/get-started), or hide the GPUs: CUDA_VISIBLE_DEVICES=",
            )
        ]
    return [
        Clash(
            f"{nvidia_gpus} NVIDIA GPU(s), torch {build.version} for CUDA {build.cuda}",
            "torch cannot use the GPUs: most often the driver is older than that CUDA",
            "compare with the CUDA version that nvidia-smi shows; update the driver or install an older CUDA build",
        )
    ]


def _satisfies(version: str, specifier: str) -> bool:
    """Whether a version lies in the range.

    A pre-release or local build ("2.13.0a0+nv25.11", as vendors' images carry them) counts as its release.
    """
    return SpecifierSet(specifier).contains(Version(version).base_version)
