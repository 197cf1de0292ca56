"""The training flags: a parse-only dataclass with the fields of the installed `TrainingArguments`.

TrainingArguments itself cannot be parsed into: making one opens the device. This class only holds what was said;
`training_kwargs` turns it into keyword arguments once the backend has named its class.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from rlhf_hw.arguments.json_object import json_object
from rlhf_hw.compat.training_flags import (
    SECRETS,
    FlagField,
    tensorboard_environment,
    training_fields,
    translate,
)
from rlhf_hw.errors import UserError

#: every stage: what is not asked for is not reported, and the data keeps the columns the stage's collator reads
_EVERY_STAGE: dict[str, Any] = {"report_to": ["none"], "remove_unused_columns": False}
#: JSON objects, or files of one. (`--deepspeed` and `--fsdp_config` are read where they act.)
_OBJECTS = (
    "accelerator_config",
    "gradient_checkpointing_kwargs",
    "liger_kernel_config",
    "lr_scheduler_kwargs",
)


@dataclass(kw_only=True)
class TrainingFlags:
    """What was said about training. The fields are those of `training_flags_class`; no device is touched."""

    _argument_group_name: ClassVar[str] = "Training (transformers.TrainingArguments, and its older flags)"
    #: fields to which the stage gives its own default
    stage_defaults: ClassVar[frozenset[str]] = frozenset()
    #: fields that the user gave, on the command line or in a file; the parser fills it in
    given: frozenset[str] = dataclasses.field(default=frozenset(), init=False, repr=False)

    if TYPE_CHECKING:
        # the fields are those of the installed TrainingArguments, which no type checker can know
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def said(self) -> dict[str, Any]:
        """The settings that matter: given, set by the stage, or changed. The rest is the trainer class's own
        affair (optimum-habana's defaults differ from transformers')."""
        values = {}
        for field in dataclasses.fields(self):
            if not field.init or field.name == "local_rank":  # launchers say it in the environment too
                continue
            value = getattr(self, field.name)
            if field.name in self.given | self.stage_defaults or value != _default_of(field):
                values[field.name] = value
        return values

    def config_dict(self) -> dict[str, Any]:
        """`said`, without credentials."""
        return {name: value for name, value in self.said().items() if name not in SECRETS}

    def secret_values(self) -> tuple[str, ...]:
        """Every text given here that must not be written anywhere."""
        return (self.hub_token,) if self.hub_token else ()


def training_flags_class(
    stage_defaults: dict[str, Any],
    *,
    required: Collection[str] = (),
    aliases: dict[str, list[str]] | None = None,
    without: Collection[str] = (),
) -> type[TrainingFlags]:
    """The flags with the stage's own defaults. `without`: fields that the stage has under another name or unit."""
    defaults = {**_EVERY_STAGE, **stage_defaults}
    fields = []
    for flag in _installed_fields():
        if flag.name in without:
            continue
        metadata = dict(flag.metadata)
        if flag.name in required:
            metadata["required"] = True
        if aliases and flag.name in aliases:
            metadata["aliases"] = [*metadata.get("aliases", []), *aliases[flag.name]]
        fields.append((flag.name, flag.type, _field(flag, defaults, metadata)))
    unknown = set(defaults) - {flag.name for flag in _installed_fields()}
    if unknown:
        raise ValueError(f"no such training flags: {sorted(unknown)}")
    return dataclasses.make_dataclass(
        "TrainingFlags",
        fields,
        bases=(TrainingFlags,),
        kw_only=True,
        namespace={"stage_defaults": frozenset(defaults) - set(without)},
    )


def training_kwargs(flags: TrainingFlags, accepted: set[str]) -> tuple[dict[str, Any], list[str]]:
    """(keyword arguments for a TrainingArguments class with fields `accepted`, lines for the user).

    Only what was said is passed. Older flags have their present meaning. Credentials are left out: a
    TrainingArguments is written into every checkpoint.

    Raises:
        UserError: two flags contradict each other, or one names a file that holds no JSON object.
    """
    return translate(_with_files_read(flags.said()), accepted)


def _with_files_read(said: dict[str, Any]) -> dict[str, Any]:
    """`said`, with the JSON objects themselves where files of them were named: transformers reads only some."""
    for name in _OBJECTS:
        value = said.get(name)
        if isinstance(value, str):
            text = value.strip()
            if not text.startswith("{"):
                text = json.dumps(json_object(text, f"--{name}", "give a JSON object, or a file of one"))
            said[name] = text
    return said


def training_environment(flags: TrainingFlags, accepted: set[str]) -> dict[str, str]:
    """Environment variables that transformers reads where older versions had a flag."""
    return tensorboard_environment(flags.logging_dir, accepted)


def accepted_fields(training_arguments: type) -> set[str]:
    """The names that class `training_arguments` takes."""
    return {field.name for field in dataclasses.fields(training_arguments) if field.init}


@cache
def _installed_fields() -> tuple[FlagField, ...]:
    from transformers import TrainingArguments

    return tuple(training_fields(TrainingArguments))


def _field(flag: FlagField, defaults: dict[str, Any], metadata: dict[str, Any]) -> Any:
    shown = flag.name not in SECRETS
    if flag.name in defaults:
        value = defaults[flag.name]
        if isinstance(value, list):
            return dataclasses.field(default_factory=lambda: list(value), metadata=metadata, repr=shown)
        return dataclasses.field(default=value, metadata=metadata, repr=shown)
    if flag.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=flag.default_factory, metadata=metadata, repr=shown)
    return dataclasses.field(default=flag.default, metadata=metadata, repr=shown)


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def check_training(flags: TrainingFlags) -> None:
    """The contradictions among training flags that can be told without a device.

    Raises:
        UserError: names the flag.
    """
    if flags.fp16 and flags.bf16:
        raise UserError("--fp16 and --bf16: both are true; give one")
    if flags.adafactor and "optim" in flags.given and flags.optim != "adafactor":
        raise UserError(f"--adafactor: --optim {flags.optim} was given too; give one")
    if not 0 <= flags.warmup_ratio <= 1:
        raise UserError(f"--warmup_ratio: got {flags.warmup_ratio}, expected a number from 0 to 1")
    if flags.load_best_model_at_end and flags.eval_strategy == "no":
        raise UserError("--load_best_model_at_end: nothing is evaluated; give --eval_strategy steps or epoch")
