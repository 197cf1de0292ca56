"""What the Gaudi libraries want to know before they load, which on a Gaudi is when torch does.

Reads the command line and its `--config` file for the flags that matter, without torch.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

#: 1: operations are collected into graphs (lazy mode), 0: each runs at once (eager mode).
LAZY_MODE_VARIABLE = "PT_HPU_LAZY_MODE"


def set_lazy_mode(argv: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Set PT_HPU_LAZY_MODE as the flags say, in a run that asks for a Gaudi.

    What the user has set stays as it is; whether it contradicts the flags, the backend says.
    """
    flags = flag_values(argv)
    device = flags.get("device", "auto")
    if device == "auto":
        device = environ.get("RLHF_HW_DEVICE", "hpu" if has_gaudi_software() else "auto")
    asked = device in ("hpu", "habana") or is_true(flags.get("use_habana"))
    if not asked or LAZY_MODE_VARIABLE in environ:
        return
    if "use_lazy_mode" in flags:
        lazy = is_true(flags["use_lazy_mode"])
    else:
        lazy = has_optimum_habana(flags.get("hpu_runtime")) and not is_true(flags.get("torch_compile"))
    environ[LAZY_MODE_VARIABLE] = "1" if lazy else "0"


def flag_values(argv: Sequence[str]) -> dict[str, str]:
    """Each flag's last value as text, those of the `--config` file first; "True" for a switch without one."""
    found: dict[str, str] = {}
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        if not word.startswith("--"):
            continue
        name, separator, value = word[2:].replace("-", "_").partition("=")
        if not separator:
            value = "True" if following.startswith("--") else following
        if name.startswith("no_"):
            name, value = name[3:], "False"
        found[name] = word.partition("=")[2] if separator else value
    return {**_config_values(found.get("config")), **found}


def _config_values(path: str | None) -> dict[str, str]:
    """The settings of a YAML file, of its groups too; none where it cannot be read, which the parser will say."""
    if path is None or not Path(path).is_file():
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict):
        return {}
    groups = [value for value in content.values() if isinstance(value, dict)]
    return {str(name): str(value) for group in (*groups, content) for name, value in group.items()}


def has_optimum_habana(runtime: str | None) -> bool:
    """Whether the optimum runtime is the one that will be used."""
    if runtime in ("optimum", "native"):
        return runtime == "optimum"
    return find_spec("optimum") is not None and find_spec("optimum.habana") is not None


def has_gaudi_software() -> bool:
    """Whether "auto" may mean a Gaudi: its software is installed, and not the emulator's."""
    return find_spec("habana_frameworks") is not None and find_spec("habana_torch_plugin_emulator") is None


def is_true(value: str | None) -> bool:
    """Whether a flag's text says yes, as the parser reads it."""
    return value is not None and value.lower() in ("true", "yes", "y", "t", "1")
