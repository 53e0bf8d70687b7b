"""RecBole's configuration with a ``guider`` block that merges key by key, dotted keys, and a device of one's
choice."""

from __future__ import annotations

import ast
import copy
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from logging import getLogger
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import recbole.config.configurator
import torch
import yaml
from recbole.config import Config

from recbole_guider import compat
from recbole_guider.denoising.settings import COMMON_KEYS, DenoisingSettings, expanded
from recbole_guider.errors import GuiderError
from recbole_guider.parallel import group
from recbole_guider.registry import PREFIX, backbone_class, check_trainable, get_model_class, guided, is_ours, know
from recbole_guider.resources import dataset_configs_dir, properties_dir
from recbole_guider.settings import GuiderSettings, MirrorGradientSettings

#: Keys whose mappings are merged key by key over all sources; RecBole replaces other mappings as a whole.
BLOCKS = ("guider", "modalities", "noise", "denoising", "mirror_gradient")

#: Arguments of the launchers themselves (run_recbole_guider.py, recbole-guider), which are not settings.
_LAUNCHER_FLAGS = {
    *("--model", "-m", "--dataset", "-d", "--config_files", "--nproc", "--ip", "--port", "--world_size"),
    "--group_offset",
}
_SUBCOMMANDS = {"run", "tune", "audit", "calibrate", "convert", "noise", "benchmark", "models"}

#: Keys that belong to the process or follow from others; a stored configuration leaves them out.
_NOT_STORED = {
    *("local_rank", "single_spec", "world_size", "nproc", "ip", "port", "offset", "config_files"),
    *("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "backbone"),
    *("valid_metric_bigger", "valid_neg_sample_args", "test_neg_sample_args"),
}


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that reads ``1e-3`` as a number, as RecBole does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$"
    ),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back: a text that looks like a number to it is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {key: list(rules) for key, rules in _Loader.yaml_implicit_resolvers.items()}


class GuiderConfig(Config):
    """The configuration of a run.

    Sources, each overriding the ones before: RecBole's defaults, this package's (``properties/overall.yaml``,
    ``properties/model/<Backbone>.yaml``, ``dataset_configs/<dataset>.yaml``), the user's files in their
    order, ``config_dict``, the command line. The blocks ``guider`` and ``modalities`` merge key by key; for
    other keys a later value replaces an earlier one, as in RecBole. ``denoising`` merges key by key too, as
    long as no later source names another method. A dotted key (``guider.dbpr.eta``,
    ``eval_args.mode``) sets one entry of a mapping, in every source. ``null`` removes an entry of
    ``modalities``.

    ``guider: false`` (or null, or no block) is the plain model, unless the model is named
    ``GUIDER_<Backbone>``, where only ``false`` is. ``GUIDER_FREEDOM``, and ``FREEDOM`` with the block, are
    the same configuration.

    Beyond RecBole's entries: ``config["model"]`` is ``GUIDER_<Backbone>`` when the block is on,
    ``config["backbone"]`` the model itself, ``config["guider"]`` the full settings as a dict, or False.
    ``eval_mask`` and ``noise`` are read from the block or from the top level, where they serve plain models
    too; after reading, both places agree.

    Args:
        model: a model's name or class; default: the key ``model`` of the sources.
        dataset: a data set's name; default: the key ``dataset``.
        config_file_list: YAML files.
        config_dict: settings; strings are read as Python literals.
        command_line: arguments such as ``["--epochs=3"]``; None: ``sys.argv[1:]``, empty: none.

    Raises:
        GuiderError: a file that is missing or malformed, an unknown model, a wrong setting in ``guider``,
            CUDA asked for where there is none.
    """

    #: The settings of the guider block, or None for the plain model.
    guider_settings: GuiderSettings | None
    #: The settings of the denoising block, or None where there is none.
    denoising_settings: DenoisingSettings | None
    # RecBole's, which has no annotations
    parameters: dict[str, list[str]]
    internal_config_dict: dict[str, Any]
    final_config_dict: dict[str, Any]
    cmd_config_dict: dict[str, Any]

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | os.PathLike[str]] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        command_line: Sequence[str] | None = None,
        *,
        _stored: Mapping[str, Any] | None = None,
    ) -> None:
        self._command_line = command_line
        self._stored = _stored
        self._sources: list[Mapping[str, Any]] = []
        if isinstance(config_file_list, (str, os.PathLike)):
            config_file_list = [config_file_list]
        super().__init__(model, dataset, config_file_list, config_dict)
        del self._command_line, self._stored, self._sources

    # -- reading the sources
    # ------------------------------------------------------------------------------------------

    def compatibility_settings(self) -> None:
        # RecBole's version fails on numpy 2
        compat.apply()

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends to its module-level lists, so that one configuration would show the keys of another
        self.parameters = {category: list(keys) for category, keys in self.parameters.items()}
        self.parameters["Guider"] = [
            *("backbone", "guider", "denoising", "modalities", "eval_mask", "noise", "mirror_gradient"),
            *("eval_memory_mb", "device", "backend"),
        ]

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return _Loader

    def _load_config_files(self, file_list: Sequence[str | os.PathLike[str]] | None) -> dict[str, Any]:
        if self._stored is not None:
            self._sources.append(self._stored)
        loaded: dict[str, Any] = {}
        for file in file_list or []:
            content = read_yaml(file)
            self._sources.append(content)
            loaded = merge(loaded, content)
        return loaded

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        # a copy: RecBole changes the caller's dict
        converted = super()._load_variable_config_dict(
            copy.deepcopy(dict(config_dict)) if config_dict else None
        )
        self._sources.append(converted)
        return merge({}, converted)

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return {
            key: parse_value(key, value) if isinstance(value, str) else value
            for key, value in config_dict.items()
        }

    def _load_cmd_line(self) -> dict[str, Any]:
        arguments = self._command_line
        if arguments is None:
            arguments = [] if "ipykernel_launcher" in sys.argv[0] else sys.argv[1:]
        converted = self._convert_config_dict(_split_arguments(arguments))
        self._sources.append(converted)
        return merge({}, converted)

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict: dict[str, Any] = {}
        for source in self._sources:
            self.external_config_dict = merge(self.external_config_dict, source)

    # -- model, data set and defaults
    # ---------------------------------------------------------------------------------

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        given = model if model is not None else self.external_config_dict.get("model")
        if not given:
            raise GuiderError(
                "no model is given: name one with --model=, as `model:` in a file or in config_dict."
            )
        if dataset is None and not self.external_config_dict.get("dataset"):
            raise GuiderError(
                "no data set is given: name one with --dataset=, as `dataset:` in a file or in config_dict."
            )
        backbone: Any
        if isinstance(given, str):
            named = given.startswith(PREFIX)
            backbone = backbone_class(given)
        else:
            named = given.__name__.startswith(PREFIX) and hasattr(given, "backbone")
            backbone = getattr(given, "backbone", given) if named else given
            know(backbone)
        # what the user said; a block among the defaults gives values, but does not switch GUIDER on
        block = self.external_config_dict.get("guider")
        self._guider_on = block is not False and (block is not None or named)
        self._backbone_class = backbone
        name, _, dataset_name = super()._get_model_and_dataset(backbone, dataset)
        self._backbone_name = name
        self.denoising_settings = DenoisingSettings.from_block(self.external_config_dict.get("denoising"))
        if self.denoising_settings is not None:
            if self._guider_on:
                raise GuiderError(
                    f"denoising is {self.denoising_settings.method} and the guider block is on: each replaces what the "
                    f"backbone learns from an interaction; switch one off (denoising: none, or guider: false)."
                )
            check_trainable(backbone, "a denoising method is for")
            return name, _denoised(backbone), dataset_name
        if not self._guider_on:
            return name, backbone, dataset_name
        return PREFIX + name, guided(backbone), dataset_name

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(self._backbone_name, self._backbone_class, dataset)
        for file in (properties_dir() / "overall.yaml", _model_properties(self._backbone_name)):
            if file.is_file():
                self.internal_config_dict = merge(self.internal_config_dict, read_yaml(file))
        file = dataset_configs_dir() / f"{dataset}.yaml"
        if file.is_file():
            content = read_yaml(file)
            self.internal_config_dict = merge(self.internal_config_dict, content)
            known = self.parameters["Dataset"]
            known += [key for key in content if key not in known and key not in BLOCKS]

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = dict(self.internal_config_dict)
        for source in self._sources:
            if source is self._stored:
                final.update(copy.deepcopy(dict(source)))  # complete: what it lacks was not there
            else:
                final = merge(final, source)
        if isinstance(final["modalities"], Mapping):
            final["modalities"] = {
                name: block
                for name, block in final["modalities"].items()
                if block is not None and block is not False
            }
        final["backbone"] = self._backbone_name
        self._apply_settings(final)
        return final

    def _apply_settings(self, final: dict[str, Any]) -> None:
        """Validate ``guider``, ``eval_mask``, ``noise`` and ``mirror_gradient``, and complete them."""
        final["denoising"] = False if self.denoising_settings is None else self.denoising_settings.to_dict()
        experiment = self._experiment()
        if not self._guider_on:
            self.guider_settings = None
            final["guider"] = False
            try:
                checked = GuiderSettings.from_block(experiment)
            except GuiderError as error:
                raise GuiderError(str(error).replace("guider.", "")) from None
        else:
            block = final["guider"]
            if block in (None, False, True):
                block = {}
            if isinstance(block, Mapping):
                block = {**block, **experiment}
            checked = self.guider_settings = GuiderSettings.from_block(block)
            assert checked is not None  # a mapping is a block that is on
            final["guider"] = checked.to_dict()
            try:
                if checked.teacher.startswith(PREFIX):
                    raise GuiderError(f"{checked.teacher} is a denoised model; name {checked.teacher[len(PREFIX):]}.")
                check_trainable(get_model_class(checked.teacher), "a teacher is one of the")
            except GuiderError as error:
                raise GuiderError(f"guider.teacher: {error}") from error
        assert checked is not None  # as above
        final["eval_mask"], final["noise"] = checked.eval_mask, checked.noise.model_dump()
        mirror_gradient = MirrorGradientSettings.from_block(final["mirror_gradient"])
        final["mirror_gradient"] = None if mirror_gradient is None else mirror_gradient.model_dump()

    def _experiment(self) -> dict[str, Any]:
        """``eval_mask`` and ``noise``: keys of the guider block, and top-level ones that also serve plain
        models.

        The later source wins, and within a source the block.
        """
        values: dict[str, Any] = {}
        for source in (self.internal_config_dict, *self._sources):
            expanded = merge({}, source)
            block = expanded.get("guider")
            holders = [expanded, block] if self._guider_on and isinstance(block, Mapping) else [expanded]
            for holder in holders:
                for key in ("eval_mask", "noise"):
                    if holder.get(key) is not None:
                        values[key] = _merge_block(values.get(key), holder[key])
        return values

    def _set_default_parameters(self) -> None:
        self._data_root = self.final_config_dict["data_path"]
        super()._set_default_parameters()

    # -- device
    # -------------------------------------------------------------------------------------------------------

    def _init_device(self) -> None:
        # RecBole's version overwrites CUDA_VISIBLE_DEVICES and knows no backend but NCCL
        final = self.final_config_dict
        gpu_id = final["gpu_id"]
        final["gpu_id"] = ",".join(map(str, gpu_id)) if isinstance(gpu_id, (tuple, list)) else str(gpu_id)
        self._device_request = _device_request(final)
        self._use_gpu_request = final["use_gpu"]
        if "local_rank" in final:
            self._join_processes()
        else:
            final["single_spec"] = True
            final["local_rank"] = 0
            final["device"] = torch.device(self._pick_device())
        if final["device"].type == "cpu" and torch.cuda.is_available():
            final["use_gpu"] = False  # RecBole would report the memory of a GPU that the run does not use

    def _pick_device(self) -> str:
        """``cpu``, ``cuda`` or ``cuda:N``, from the keys device, use_gpu and gpu_id."""
        final, request = self.final_config_dict, self._device_request
        use_gpu, gpu_id = final["use_gpu"], final["gpu_id"]
        if request.startswith("cuda") and use_gpu is False:
            raise GuiderError(f"device is {request} but use_gpu is False: change one of the two.")
        if request == "cpu" and self.cmd_config_dict.get("use_gpu") is True:
            raise GuiderError("device is cpu but use_gpu is True: change one of the two.")
        if request == "cpu" or request == "auto" and (use_gpu is False or not gpu_id):
            return "cpu"
        if request in ("auto", "cuda") and gpu_id:
            _show_gpus(gpu_id)
        if torch.cuda.is_available():
            index = int(request.partition(":")[2] or 0)
            if index >= torch.cuda.device_count():
                raise GuiderError(
                    f"device is {request}, but this process sees {torch.cuda.device_count()} CUDA device(s): the first "
                    f"is cuda:0."
                )
            return "cuda" if request == "auto" else request
        asked = [
            f"{key}={self.cmd_config_dict[key]}"
            for key in ("use_gpu", "gpu_id")
            if self.cmd_config_dict.get(key)
        ]
        if request != "auto":
            asked = [f"device={request}"]
        elif "gpu_id" in self.cmd_config_dict and gpu_id and not asked:
            asked = [f"gpu_id={gpu_id}"]  # GPU 0
        if asked:
            raise GuiderError(
                f"{asked[0]} asks for CUDA, but torch {torch.__version__} finds no CUDA device here; use "
                f"device=cpu, or device=auto to take what is there."
            )
        return "cpu"

    def _join_processes(self) -> None:
        """Become one of several processes, over the backend of one's choice."""
        final = self.final_config_dict
        local_rank = final["local_rank"]
        rank = local_rank + final["offset"]
        on_cuda = self._pick_device() != "cpu"
        backend = final["backend"]
        if backend not in ("auto", "nccl", "gloo"):
            raise GuiderError(f"backend is {backend!r}: it must be auto, nccl or gloo.")
        if backend == "auto":
            backend = "nccl" if on_cuda else "gloo"
        elif backend == "nccl" and not on_cuda:
            raise GuiderError("backend is nccl, which needs CUDA devices: use gloo or auto on a CPU.")
        if on_cuda and torch.cuda.device_count() < final["nproc"]:
            raise GuiderError(
                f"nproc is {final['nproc']}, but this process sees {torch.cuda.device_count()} CUDA device(s): name as "
                f"many in gpu_id, e.g. gpu_id=0,1."
            )
        if on_cuda:
            torch.cuda.set_device(local_rank)
        group.join(backend, rank, final["world_size"], f"tcp://{final['ip']}:{final['port']}")
        # to RecBole a process looks like a single one: recbole_guider.parallel deals batches and evaluations
        final["single_spec"] = True
        final["device"] = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
        if rank != 0:
            final.update(
                state="error", show_progress=False, log_wandb=False, save_dataset=False, save_dataloaders=False
            )

    # -- views and copies
    # ---------------------------------------------------------------------------------------------

    def teacher_config(self) -> GuiderConfig:
        """The configuration to make the teacher with: this one, with the teacher's hyper-parameters.

        They are the defaults of the teacher's model, RecBole's and this package's; embedding_size is the
        student's; and ``guider.teacher_parameters`` overrides both. A teacher of the same model as the
        student starts from the student's values instead of the defaults. ``["model"]`` is the teacher's name;
        changes do not reach this configuration.

        Raises:
            GuiderError: the guider block is off.
        """
        if self.guider_settings is None:
            raise GuiderError("the guider block is off: a plain model has no teacher.")
        name = self.guider_settings.teacher
        model_class: Any = get_model_class(name)
        final = copy.deepcopy(self.final_config_dict)
        if name != self._backbone_name:
            recbole_properties = Path(recbole.config.configurator.__file__).parent.parent / "properties"
            for file in (recbole_properties / "model" / f"{name}.yaml", _model_properties(name)):
                if file.is_file():
                    final.update(read_yaml(file))
            if "embedding_size" in self.final_config_dict:
                final["embedding_size"] = self.final_config_dict["embedding_size"]
        final.update(copy.deepcopy(self.guider_settings.teacher_parameters))
        final.update(model=name, backbone=name, MODEL_TYPE=model_class.type)
        if hasattr(model_class, "input_type"):
            final["MODEL_INPUT_TYPE"] = model_class.input_type
        view = copy.copy(self)
        view.final_config_dict = final
        view.model, view.model_class = name, model_class
        view._backbone_name, view._backbone_class = name, model_class
        return view

    def to_plain(self) -> dict[str, Any]:
        """This configuration as str, int, float, bool, None, list, tuple and dict: what a checkpoint stores.

        ``data_path`` is the folder that holds the data set's folder, as in a file, and ``device`` what was
        asked for (``auto``); what belongs to the process (ranks, ports) is left out. A value of another type
        is left out too, with a warning.
        """
        plain: dict[str, Any] = {}
        final = dict(self.final_config_dict)
        final.update(
            data_path=self._data_root,
            device=self._device_request,
            use_gpu=self._use_gpu_request,
        )
        if final["train_neg_sample_args"]["distribution"] == "none":
            final["train_neg_sample_args"] = None  # RecBole does not read its own form of it
        for key, value in final.items():
            if key in _NOT_STORED:
                continue
            try:
                plain[key] = _to_plain(value)
            except TypeError:
                getLogger().warning(
                    f"config key {key} holds a {type(value).__name__}, which a checkpoint cannot keep: it is left out"
                )
        return plain

    @classmethod
    def from_plain(
        cls,
        plain: Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
        *,
        model: type | None = None,
    ) -> GuiderConfig:
        """The configuration that :meth:`to_plain` described, without reading the command line or any user's
        file.

        Args:
            plain: what :meth:`to_plain` gave.
            overrides: keys that win over the stored ones, read like ``config_dict`` (dotted keys, merging
                blocks; ``data_path`` is the folder that holds the data set's folder).
            model: the model's class, where it is one that the registry does not know.

        Raises:
            GuiderError: as the constructor. A stored request for CUDA becomes ``auto`` where there is none.
        """
        stored = dict(plain)
        if str(stored.get("device", "auto")).startswith("cuda"):
            index = int(stored["device"].partition(":")[2] or 0)
            if not torch.cuda.is_available() or index >= torch.cuda.device_count():
                stored["device"] = "auto"
        given = dict(overrides or {})
        return cls(
            model=model or given.get("model", stored["model"]),
            dataset=given.get("dataset", stored["dataset"]),
            config_dict=given,
            command_line=[],
            _stored=stored,
        )

    def __getstate__(self) -> dict[str, Any]:
        # GUIDER_<Backbone> classes are made on request: pickle finds the backbone by name, not them
        return {key: value for key, value in self.__dict__.items() if key != "model_class"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        know(self._backbone_class)
        self.model_class = self._backbone_class
        if self.model.startswith(PREFIX) and self._guider_on:
            self.model_class = guided(self._backbone_class)
        elif self.denoising_settings is not None:
            self.model_class = _denoised(self._backbone_class)


def is_our_run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | os.PathLike[str]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a run with these arguments of RecBole's ``Config``, and this process's command line, needs this package:
    its model is one that RecBole by itself does not know, or a ``guider`` block is on.

    What cannot be read here is not ours: RecBole says what it thinks of it.
    """
    try:
        found: dict[str, Any] = {}
        for file in config_file_list or []:
            found = merge(found, read_yaml(file))
        given = dict(config_dict or {})
        typed = [argument[2:].partition("=") for argument in sys.argv[1:] if argument.startswith("--")]
        for source in (given, {key: value for key, separator, value in typed if separator}):
            keys = ("model", "guider")
            wanted = {key: value for key, value in source.items() if str(key).partition(".")[0] in keys}
            found = merge(found, {
                key: parse_value(key, value) if isinstance(value, str) else value for key, value in wanted.items()
            })
    except (GuiderError, TypeError, ValueError):
        return False
    name = model if model is not None else found.get("model")
    block = found.get("guider")
    if block is not None and block is not False:
        return True
    return is_ours(name if isinstance(name, str) else getattr(name, "__name__", ""))


def read_yaml(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file, read safely; an empty file is an empty mapping.

    Raises:
        GuiderError: the file is missing, is no text or no YAML (the message has the line), or holds no
            mapping.
    """
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise GuiderError(f"configuration file {file} does not exist.") from None
    except OSError as error:
        raise GuiderError(f"configuration file {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise GuiderError(f"configuration file {file} is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise GuiderError(
            f"configuration file {file}{line} is not valid YAML: {problem or error}."
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise GuiderError(
            f"configuration file {file} holds a {type(content).__name__}: it must be `key: value` lines."
        )
    return content


def write_yaml(content: Mapping[str, Any], file: str | os.PathLike[str], header: str = "") -> None:
    """Write a property file that :func:`read_yaml` reads back to the same values.

    Args:
        content: plain data; tuples become lists.
        file: where to.
        header: comment lines for the top, without their ``#``.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = yaml.dump(_to_plain_lists(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    Path(file).write_text(comment + text, encoding="utf-8")


def _to_plain_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_to_plain(key): _to_plain_lists(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain_lists(part) for part in value]
    return _to_plain(value)


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` overridden by ``update``, both untouched.

    Mappings under the keys in :data:`BLOCKS` merge key by key, at every depth; there, a mapping after False
    switches the block on, and True after a mapping keeps it. In ``denoising`` a name stands for ``{method: name}``,
    and another method drops the parameters of the one before. Other values are replaced. A dotted key sets one
    entry of a mapping, and comes after the plain keys of the same ``update``.

    Raises:
        GuiderError: a dotted key goes through a value that is no mapping.
    """
    merged = dict(base)
    for key, value in _plain_keys_first(update):
        head, *path = key.split(".") if isinstance(key, str) else [key]
        if head in BLOCKS:
            if head == "guider" and isinstance(value, Mapping):
                value = _expand(value)
            value, before = _nest(path, value), merged.get(head)
            if head == "denoising":
                value, before = expanded(value), _of_same_method(before, expanded(value))
            merged[head] = _merge_block(before, value)
        elif path:
            merged[head] = _with_entry(merged.get(head), path, value, key)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _of_same_method(before: Any, value: Any) -> Any:
    """What remains of an earlier ``denoising`` block: where another method is named, what all methods have."""
    before = expanded(before)
    if not isinstance(before, Mapping) or not isinstance(value, Mapping):
        return before
    if value.get("method", before.get("method")) == before.get("method"):
        return before
    return {key: before[key] for key in COMMON_KEYS if key in before}


def _plain_keys_first(mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    return sorted(mapping.items(), key=lambda item: "." in str(item[0]))


def _nest(path: Sequence[str], value: Any) -> Any:
    for part in reversed(path):
        value = {part: value}
    return value


def _expand(block: Mapping[Any, Any]) -> dict[Any, Any]:
    """Dotted keys inside a block, made nested mappings."""
    expanded: dict[Any, Any] = {}
    for key, value in _plain_keys_first(block):
        value = _expand(value) if isinstance(value, Mapping) else value
        head, *path = key.split(".") if isinstance(key, str) else [key]
        expanded[head] = _merge_block(expanded.get(head), _nest(path, value))
    return expanded


def _merge_block(old: Any, new: Any) -> Any:
    if new is True and isinstance(old, Mapping):
        return old
    if not isinstance(new, Mapping):
        return copy.deepcopy(new)
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in new.items():
        merged[key] = _merge_block(merged.get(key), value)
    return merged


def _with_entry(mapping: Any, path: Sequence[str], value: Any, key: str) -> dict[str, Any]:
    if mapping is not None and not isinstance(mapping, Mapping):
        above = key[: -len(".".join(path)) - 1]
        raise GuiderError(f"{key} cannot be set: {above} is {mapping!r}, which is not a mapping.")
    entries = dict(mapping or {})
    first, *rest = path
    entries[first] = _with_entry(entries.get(first), rest, value, key) if rest else copy.deepcopy(value)
    return entries


def parse_value(key: str, text: str) -> Any:
    """What ``text``, given for ``key`` on the command line or as a string in ``config_dict``, stands for.

    A Python literal, else true or false in any case, else the text itself: RecBole's rules, but nothing is
    executed. In the blocks of this package, and where the text begins with a brace, YAML is understood too.

    Raises:
        GuiderError: the value of a block is neither.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    else:
        return value if value is None or isinstance(value, (str, int, float, list, tuple, dict)) else text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    in_block = key.partition(".")[0] in BLOCKS
    if not in_block and not text.startswith("{"):
        return text
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        if not in_block:
            return text
        raise GuiderError(
            f"{key} is {text!r}, which is neither a value nor YAML: {getattr(error, 'problem', error)}."
        ) from error
    if in_block:
        return value if value is None or isinstance(value, (str, int, float, list, dict)) else text
    return value if isinstance(value, dict) else text


def _split_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """``--key=value`` arguments as a dict of strings; the launchers' own are skipped, others give a warning."""
    settings: dict[str, str] = {}
    unused = []
    remaining = list(arguments)
    if remaining and remaining[0] in _SUBCOMMANDS:
        del remaining[0]
    while remaining:
        argument = remaining.pop(0)
        name, separator, value = argument.partition("=")
        if argument in _LAUNCHER_FLAGS:
            if remaining and not remaining[0].startswith("-"):
                del remaining[0]
        elif separator and len(name) > 2 and name.startswith("--"):
            name = name[2:]
            if settings.get(name, value) != value:
                raise GuiderError(
                    f"--{name} is given twice, as {settings[name]!r} and as {value!r}: give it once."
                )
            settings[name] = value
        elif not re.fullmatch(r"-[md]=?[^-]\S*", argument):
            unused.append(argument)
    if unused:
        getLogger().warning(f"command line args [{' '.join(unused)}] will not be used in RecBole")
    return settings


#: What this process has put into CUDA_VISIBLE_DEVICES, and may therefore replace.
_shown_gpus: str | None = None


def _show_gpus(gpu_id: str) -> None:
    """Let CUDA see the devices ``gpu_id`` only, as RecBole does; a choice that the user made before stays."""
    global _shown_gpus
    current = os.environ.get("CUDA_VISIBLE_DEVICES")
    if current is not None and current != _shown_gpus:
        if current != gpu_id and gpu_id != "0":
            getLogger().warning(
                f"CUDA_VISIBLE_DEVICES={current} is set and stays: gpu_id {gpu_id} is not used"
            )
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = _shown_gpus = gpu_id


def _device_request(final: Mapping[str, Any]) -> str:
    device = final["device"]
    request = "auto" if device is None else str(device).lower()
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", request):
        raise GuiderError(f"device is {device!r}: it must be auto, cpu, cuda or cuda:N.")
    return request


def _denoised(backbone: type) -> type:
    # imported here: plain models need nothing of it
    from recbole_guider.model.denoised import denoised_class

    return denoised_class(backbone)


def _model_properties(name: str) -> Path:
    return properties_dir() / "model" / f"{name}.yaml"


def _to_plain(value: Any) -> Any:
    if (
        value is None
        or isinstance(value, (bool, int, float, str))
        and not isinstance(value, (np.generic, Enum))
    ):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {_to_plain(key): _to_plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_to_plain(part) for part in value)
    if isinstance(value, list):
        return [_to_plain(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_to_plain(part) for part in value)
    raise TypeError(type(value).__name__)
