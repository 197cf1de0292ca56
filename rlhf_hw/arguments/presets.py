"""`--preset`: the settings with which known systems were trained, as defaults of our own flags.

A preset holds, a command: the defaults of that system's script (`rlhf_hw.arguments.dialects`, so that its own command
line and the preset mean the same), and over them what its documented commands pass. Models, data and paths are the
user's. The parser puts a preset below configuration file and command line; a name that no group has is an error there.
"""

from __future__ import annotations

from typing import Any

from rlhf_hw.arguments.dialects import alpaca_farm, alpaca_rlhf, deepspeed_chat, intel

#: preset → command → setting → value
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "intel-neural-chat": intel.DEFAULTS,
    "deepspeed-chat": deepspeed_chat.DEFAULTS,
    "alpaca-rlhf": alpaca_rlhf.DEFAULTS,
    "alpaca-farm-lora": alpaca_farm.DEFAULTS,
}
