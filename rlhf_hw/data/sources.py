"""What the data flags ask for: one set or several, converted, split, shared out between the stages and mixed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset

from rlhf_hw.data.convert import Converted, convert_rows, format_of
from rlhf_hw.data.example import PURPOSES, Purpose
from rlhf_hw.data.finding import existing_file, open_set
from rlhf_hw.data.formats import Format, alpaca, format_named, known_formats
from rlhf_hw.data.report import DataReport, FileReport, SetReport
from rlhf_hw.data.rows import RowSource, from_files
from rlhf_hw.data.splits import Shares, first, held_out_tenth, mixed, split_off, stage_part
from rlhf_hw.errors import UserError

_ALPACA_NAMES = {alpaca.FORMAT.name, alpaca.PREFERENCE_FORMAT.name}


@dataclass
class DataSource:
    """What the data flags say. There is `dataset_name`, or `train_file`, or for SFT at least `sft_only_data_path`.

    `dataset_name`: a hub name, or a local directory or file (a local path wins); or several of them, which are mixed.
    `train_splits`, `eval_splits`: splits of the set by name, joined.
    `data_split`: the shares of each set that SFT, reward model and PPO get.
    `sft_only_data_path`: sets that SFT gets whole, whatever `data_split` says.
    `data_format`: the name of a format or the path of a YAML file; None detects it by the columns (and the name).
    `prompt_dict_path`: Alpaca's two prompts, in a JSON file.
    Validation rows come from, in this order: `validation_file`; `eval_splits` or the set's own held-out split;
    with `data_split`, a tenth of the share; `eval_dataset_size` rows of train drawn with `dataset_seed`; the first
    `validation_split_percentage` of train. Each set for itself, where there are several.
    `streaming`: read a hub set as a stream and stop after `max_train_samples`, without fetching all of it.
    `max_malformed_fraction`: above this share of malformed rows a file is refused.
    """

    dataset_name: str | Sequence[str] | None = None
    dataset_config_name: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    train_splits: Sequence[str] | None = None
    eval_splits: Sequence[str] | None = None
    data_split: Shares | None = None
    sft_only_data_path: Sequence[str] | None = None
    data_format: str | None = None
    prompt_dict_path: str | None = None
    validation_split_percentage: int = 0
    eval_dataset_size: int | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    dataset_seed: int = 42
    cache_dir: str | None = None
    streaming: bool = False
    keep_in_memory: bool = False
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    num_proc: int | None = None
    task: str = "completion"
    max_malformed_fraction: float = 0.01

    def names(self) -> list[str]:
        """The sets that every stage gets: their names, or the path of `train_file`."""
        if self.train_file is not None:
            return [self.train_file]
        if self.dataset_name is None:
            return []
        return [self.dataset_name] if isinstance(self.dataset_name, str) else list(self.dataset_name)


@dataclass
class Splits:
    """Canonical data sets (`rlhf_hw.data.example.CANONICAL_FEATURES`) and the report on how they came about."""

    train: Dataset
    validation: Dataset | None
    report: DataReport


def load_splits(source: DataSource, purpose: Purpose) -> Splits:
    """Find, convert, check, split and mix the data. Raises `UserError` for everything a user can mend."""
    _check(source, purpose)
    reader = _SetReader(source, purpose)
    sets = [reader.read(name, source.data_split) for name in source.names()]
    if purpose == "sft":
        whole = None if source.data_split is None else (1.0, 0.0, 0.0)
        sets += [reader.read(name, whole) for name in source.sft_only_data_path or ()]
    train = first(mixed([one.train for one in sets], source.dataset_seed), source.max_train_samples)
    held_out = [one.validation for one in sets if one.validation is not None]
    origin = sets[0].origin
    if source.validation_file is not None:
        held_out = [reader.read_file(source.validation_file)]
        origin = f"--validation_file {source.validation_file}"
    validation = first(mixed(held_out, source.dataset_seed), source.max_eval_samples) if held_out else None
    report = DataReport(
        files=reader.files,
        validation_origin=origin,
        train_rows=len(train),
        validation_rows=0 if validation is None else len(validation),
        sets=[one.report() for one in sets],
    )
    if source.prompt_dict_path is not None and not {file.format for file in reader.files} & _ALPACA_NAMES:
        report.notes.append("--prompt_dict_path: no effect here; no set was read as alpaca or alpaca_farm")
    return Splits(train, validation, report)


def open_train_rows(source: DataSource) -> RowSource:
    """The raw rows of one set's train split, as they come, in no format."""
    _check(source, "sft")
    names = source.names()
    if len(names) != 1:
        raise UserError(f"--dataset_name: one set is needed here, {len(names)} were given")
    return open_set(names[0], source)[0]


def _check(source: DataSource, purpose: Purpose) -> None:
    if source.dataset_name is not None and source.train_file is not None:
        raise UserError("--dataset_name, --train_file: both given; give one of them")
    if not source.names() and not (purpose == "sft" and source.sft_only_data_path):
        raise UserError("--dataset_name, --train_file: neither given; give one of them")
    if not 0 <= source.validation_split_percentage < 100:
        raise UserError(f"--validation_split_percentage: {source.validation_split_percentage}; give 0 to 99")
    counts = {
        "max_train_samples": source.max_train_samples,
        "max_eval_samples": source.max_eval_samples,
        "eval_dataset_size": source.eval_dataset_size,
    }
    for flag, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{flag}: {value}; give a number of rows, at least 1, or leave the flag out")
    if not 0 <= source.max_malformed_fraction <= 1:
        raise UserError(f"--max_malformed_fraction: {source.max_malformed_fraction}; give 0 to 1")
    share = None if source.data_split is None else source.data_split[PURPOSES.index(purpose)]
    if share == 0 and not (purpose == "sft" and source.sft_only_data_path):
        shares = ",".join(f"{value:g}" for value in source.data_split or ())
        raise UserError(f"--data_split: {shares} leaves no data for {purpose}; give it a share")


# --- one set ---------------------------------------------------------------------------------------------------


@dataclass
class _LoadedSet:
    name: str
    train: Dataset
    validation: Dataset | None
    origin: str

    def report(self) -> SetReport:
        return SetReport(self.name, len(self.train), len(self.validation or ()), self.origin)


class _SetReader:
    """Reads sets for one purpose and keeps the reports on their files."""

    def __init__(self, source: DataSource, purpose: Purpose) -> None:
        self.files: list[FileReport] = []
        self._formats_read: list[Format] = []
        self._source, self._purpose = source, purpose
        self._formats = known_formats(source.prompt_dict_path)
        self._asked = None if source.data_format is None else format_named(source.data_format, self._formats)

    def read(self, name: str, shares: Shares | None) -> _LoadedSet:
        """The share of a set that this purpose gets; all of it where `shares` is None."""
        source = self._source
        train_rows, validation_rows, origin = open_set(name, source)
        if source.validation_file is not None:
            validation_rows = None
        train = self._convert(train_rows, name)
        validation = None
        if validation_rows is not None:
            validation = self._convert(validation_rows, name, train.row_format)
        self._formats_read.append(train.row_format)
        if shares is not None:
            return self._share(name, train, validation, origin, shares)
        if validation is not None:
            return _LoadedSet(name, train.usable(), validation.usable(), origin)
        if source.validation_file is not None:
            return _LoadedSet(name, train.usable(), None, "")
        parts = split_off(
            train.usable(),
            size=source.eval_dataset_size,
            percentage=source.validation_split_percentage,
            seed=source.dataset_seed,
        )
        return _LoadedSet(name, *parts)

    def read_file(self, path: str) -> Dataset:
        """Validation rows from a file; in the first set's format where its columns are the same."""
        rows = from_files([existing_file(path, "--validation_file")])
        return self._convert(rows, path, self._formats_read[0]).usable()

    def _convert(self, rows: RowSource, name: str, likely: Format | None = None) -> Converted:
        source = self._source
        row_format = self._asked or format_of(rows, self._formats, name, likely)
        converted = convert_rows(
            rows,
            purpose=self._purpose,
            row_format=row_format,
            task=source.task,
            max_malformed_fraction=source.max_malformed_fraction,
            cache_dir=source.cache_dir,
            keep_in_memory=source.keep_in_memory,
        )
        self.files.append(converted.report)
        return converted

    def _share(
        self, name: str, train: Converted, validation: Converted | None, origin: str, shares: Shares
    ) -> _LoadedSet:
        """This stage's part of the rows. Parted before the unusable ones are left out: those differ by stage."""
        seed, stage = self._source.dataset_seed, PURPOSES.index(self._purpose)
        rows = stage_part(len(train.everything), shares, stage, seed)
        kept: Dataset | None = None
        if validation is not None:
            kept = validation.usable(stage_part(len(validation.everything), shares, stage, seed))
        elif self._source.validation_file is None:
            rows, held_out = held_out_tenth(rows)
            kept, origin = train.usable(held_out), f"a tenth of this share, drawn with seed {seed}"
        part = train.usable(rows)
        if not len(part):
            raise UserError(
                f"--data_split: {name}: the share of {self._purpose} holds no usable row of "
                f"{len(train.everything)}; give it a larger share, or leave out the flag"
            )
        return _LoadedSet(name, part, kept if kept is not None and len(kept) else None, origin)
