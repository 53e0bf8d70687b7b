"""RecBole's configuration with a ``guider`` block that merges key by key, dotted keys, and a device of one's
choice."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config

from recbole_guider.config.merging import BLOCKS, merge, merge_block, parse_value, split_arguments
from recbole_guider.config.registry import (
    PREFIX,
    backbone_class,
    check_trainable,
    ensure_registered,
    get_model_class,
    is_ours,
)
from recbole_guider.config.validation import (
    check_teacher_parameters,
    check_values,
    model_properties,
    shared_properties,
    unknown_keys,
)
from recbole_guider.data.settings import AMOUNTS
from recbole_guider.denoising.methods import denoising_settings
from recbole_guider.denoising.settings import DenoisingSettings
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.training.settings import MirrorGradientSettings
from recbole_guider.utils import compat, distributed
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.extensions import import_extensions
from recbole_guider.utils.recbole_errors import recboles_errors, warn_once
from recbole_guider.utils.resources import dataset_configs_dir, properties_dir
from recbole_guider.utils.yaml_files import YamlLoader, read_yaml, to_plain

#: Keys that belong to the process or follow from others; a stored configuration leaves them out.
_NOT_STORED = {
    *("local_rank", "single_spec", "world_size", "nproc", "ip", "port", "offset", "config_files"),
    *("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "backbone"),
    *("valid_metric_bigger", "valid_neg_sample_args", "test_neg_sample_args"),
    "resume",  # the file is gone once training has ended
}


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
    ``eval_mask`` and ``noise`` are read from the block or from the top level, and serve plain models too, also
    where the block is switched off; after reading, both places agree.

    Args:
        model: a model's name or class; default: the key ``model`` of the sources.
        dataset: a data set's name; default: the key ``dataset``.
        config_file_list: YAML files.
        config_dict: settings; strings are read as Python literals.
        command_line: arguments such as ``["--epochs=3"]``; None: ``sys.argv[1:]``, empty: none.

    Raises:
        GuiderError: a file that is missing or malformed, an unknown model, a wrong setting in ``guider``,
            CUDA asked for where there is none, a value that RecBole or the model cannot have, a slip in the name of a
            setting of this package.
    """

    #: The settings of the guider block, or None for the plain model.
    guider_settings: GuiderSettings | None
    #: The settings of the denoising block, or None where there is none.
    denoising_settings: DenoisingSettings | None
    #: Whether a script of RecBole's functions made it, which finds model and trainer by ``config["model"]``.
    is_found_by_name = False
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
        #: what ``import`` names, in all sources that a user wrote; a stored configuration is none
        self._imports: list[str] = []
        if isinstance(config_file_list, (str, os.PathLike)):
            config_file_list = [config_file_list]
        super().__init__(model, dataset, config_file_list, config_dict)
        if self._unknown and distributed.is_main():
            warn_once(f"settings that nothing reads: {', '.join(self._unknown)}")
        del self._command_line, self._stored, self._sources, self._imports, self._unknown
        #: what the run trains: the model itself, or what GUIDER or a denoising method puts around it
        self.model_class = self._trained_class()
        if self.is_found_by_name:
            self._check_known_by_name()

    @property
    def backbone_class(self) -> type:
        """The class of the model itself, ``config["backbone"]``."""
        return self._backbone_class

    def _trained_class(self) -> type:
        # imported here: plain models need nothing of them
        if self.denoising_settings is not None:
            from recbole_guider.denoising.model import Denoised

            return Denoised
        if self._guider_on:
            if self.guider_settings is not None and self.guider_settings.variant == "released":
                from recbole_guider.guider.released import ReleasedGuider

                return ReleasedGuider
            from recbole_guider.guider.model import Guider

            return Guider
        return self._backbone_class

    def _check_known_by_name(self) -> None:
        """Raise where a script of RecBole's functions, which finds model and trainer by their names, would leave out a
        part of what was asked for.

        Raises:
            GuiderError: a denoising method is on, or mirror gradient for a model of RecBole's own.
        """
        hint = (
            "the name of a model: train with run_recbole or run_recbole_guider, or load_data_and_model a trained one."
        )
        if self.denoising_settings is not None:
            raise GuiderError(f"denoising is {self.denoising_settings.method}, which does not follow from {hint}")
        if self["mirror_gradient"] is not None and not is_ours(self["model"]):
            raise GuiderError(f"mirror_gradient is set, which for {self['model']} does not follow from {hint}")

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
            *("eval_memory_mb", "device", "backend", "import"),
        ]

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return YamlLoader

    def _load_config_files(self, file_list: Sequence[str | os.PathLike[str]] | None) -> dict[str, Any]:
        if self._stored is not None:
            self._sources.append(self._stored)
        loaded: dict[str, Any] = {}
        for file in file_list or []:
            content = read_yaml(file)
            self._imports += import_extensions(content.get("import"), Path(file).resolve().parent)
            self._sources.append(content)
            loaded = merge(loaded, content)
        return loaded

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        # a copy: RecBole changes the caller's dict
        converted = super()._load_variable_config_dict(
            copy.deepcopy(dict(config_dict)) if config_dict else None
        )
        self._imports += import_extensions(converted.get("import"), Path.cwd())
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
        converted = self._convert_config_dict(split_arguments(arguments))
        self._imports += import_extensions(converted.get("import"), Path.cwd())
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
            named, backbone = False, given
            ensure_registered(backbone)
        # what the user said; a block among the defaults gives values, but does not switch GUIDER on
        block = self.external_config_dict.get("guider")
        self._guider_on = block is not False and (block is not None or named)
        self._backbone_class = backbone
        name, _, dataset_name = super()._get_model_and_dataset(backbone, dataset)
        self._backbone_name = name
        self.denoising_settings = denoising_settings(self.external_config_dict.get("denoising"))
        if self.denoising_settings is not None:
            if self._guider_on:
                raise GuiderError(
                    f"denoising is {self.denoising_settings.method} and the guider block is on: each replaces what the "
                    f"backbone learns from an interaction; switch one off (denoising: none, or guider: false)."
                )
            check_trainable(backbone, "a denoising method is for")
        elif self._guider_on:
            check_trainable(backbone, "GUIDER denoises")
            name = PREFIX + name
        return name, backbone, dataset_name

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(self._backbone_name, self._backbone_class, dataset)
        for file in (properties_dir() / "overall.yaml", properties_dir() / "model" / f"{self._backbone_name}.yaml"):
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
        final["import"] = list(dict.fromkeys(self._imports)) or None
        given = {**self.variable_config_dict, **self.cmd_config_dict}
        # before values: a slip in the name of a block leaves it out
        self._unknown = unknown_keys(
            given, self.file_config_dict,
            [*self.internal_config_dict, *(key for keys in self.parameters.values() for key in keys)],
            (*BLOCKS, "eval_mask"), self._backbone_class,
        )
        self._apply_settings(final)
        # what a run was stored with, it ran with
        checked = final if self._stored is None else {key: final[key] for key in given if key in final}
        check_values(checked, self._backbone_name)
        settings = self.guider_settings
        if settings is not None and settings.schedule == "pretrained" and final["eval_step"] <= 0:
            raise GuiderError(
                f"eval_step is {final['eval_step']}: with guider.schedule pretrained it must be 1 or more."
            )
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
            if block is None or block is False or block is True:
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
            teacher = "FREEDOM" if checked.variant == "released" else checked.teacher
            check_teacher_parameters(checked.teacher_parameters, teacher, get_model_class(teacher))
        assert checked is not None  # as above
        final["eval_mask"], final["noise"] = checked.eval_mask, checked.noise.model_dump()
        mirror_gradient = MirrorGradientSettings.from_block(final["mirror_gradient"])
        final["mirror_gradient"] = None if mirror_gradient is None else mirror_gradient.model_dump()

    def _experiment(self) -> dict[str, Any]:
        """``eval_mask`` and ``noise``: keys of the guider block, and top-level ones. Both places serve plain models
        too, so that a comparison has the same data and the same measure.

        The later source wins, and within a source the block.
        """
        values: dict[str, Any] = {}
        for source in (self.internal_config_dict, *self._sources):
            expanded = merge({}, source)
            block = expanded.get("guider")
            holders = [expanded, block] if isinstance(block, Mapping) else [expanded]
            for holder in holders:
                for key in ("eval_mask", "noise"):
                    if holder.get(key) is not None:
                        values[key] = merge_block(values.get(key), holder[key])
        return values

    def _set_default_parameters(self) -> None:
        self._data_root = self.final_config_dict["data_path"]
        with recboles_errors():
            super()._set_default_parameters()

    def _set_train_neg_sample_args(self) -> None:
        with recboles_errors():
            super()._set_train_neg_sample_args()

    def _set_eval_neg_sample_args(self, phase: str) -> None:
        with recboles_errors():
            super()._set_eval_neg_sample_args(phase)

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
        typed, given = self.cmd_config_dict, self.variable_config_dict
        asks = typed.get("use_gpu", given.get("use_gpu"))
        if request == "cpu" and asks is True and ("use_gpu" in typed or "device" not in typed):
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
        asked = ""
        if request != "auto":
            asked = f"device={request}"
        elif asks:
            asked = f"use_gpu={asks}"
        elif "gpu_id" in typed:
            asked = f"gpu_id={gpu_id}"
        if asked:
            raise GuiderError(
                f"{asked} asks for CUDA, but torch {torch.__version__} finds no CUDA device here; use "
                f"device=cpu, or device=auto to take what is there."
            )
        if self.file_config_dict.get("use_gpu") and not final.get("local_rank"):
            # no error: machines share property files
            warn_once(
                f"a property file has use_gpu: {self.file_config_dict['use_gpu']}, but torch {torch.__version__} finds "
                f"no CUDA device here: this run takes the CPU"
            )
        return "cpu"

    def _join_processes(self) -> None:
        """Become one of several processes, over the backend of one's choice."""
        final = self.final_config_dict
        local_rank = final["local_rank"]
        rank = local_rank + final["offset"]
        on_cuda = self._pick_device() != "cpu"
        backend = final["backend"]
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
        distributed.join(backend, rank, final["world_size"], f"tcp://{final['ip']}:{final['port']}")
        # to RecBole a process looks like a single one: recbole_guider.training.parallel deals batches and evaluations
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
        student's; and ``guider.teacher_parameters`` overrides both. A learning rate or another setting for all
        models is the student's too, unless it is what the student's model has by default. A teacher of the same
        model as the student starts from the student's values instead of the defaults. ``["model"]`` is the
        teacher's name; changes do not reach this configuration.

        Raises:
            GuiderError: the guider block is off.
        """
        if self.guider_settings is None:
            raise GuiderError("the guider block is off: a plain model has no teacher.")
        name = self.guider_settings.teacher
        model_class: Any = get_model_class(name)
        final = copy.deepcopy(self.final_config_dict)
        if name != self._backbone_name:
            shared = {key: value for file in shared_properties() for key, value in read_yaml(file).items()}
            for file in model_properties(self._backbone_name):
                for key, value in read_yaml(file).items():
                    if key in shared and final[key] == value:
                        final[key] = shared[key]
            for file in model_properties(name):
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
                plain[key] = to_plain(value)
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        ensure_registered(self._backbone_class)


def is_our_run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | os.PathLike[str]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a run with these arguments of RecBole's ``Config``, and this process's command line, needs this package:
    its model is one that RecBole by itself does not know, or a block is on (``guider``, ``denoising``,
    ``mirror_gradient``), its data are not RecBole's (``noise``, ``eval_mask``), or it has an ``import``.

    What cannot be read here is not ours: RecBole says what it thinks of it.
    """
    found = _asked_of_us(model, config_file_list, config_dict)
    blocks_on = _is_on(found.get("guider")) or _is_on(found.get("mirror_gradient"))
    if blocks_on or changes_data(found) or found.get("import"):
        return True
    denoising = found.get("denoising")
    try:
        denoised = denoising_settings(denoising) is not None
    except GuiderError:
        # the run says what is wrong with it, unless it is a parameter of somebody's model
        denoised = isinstance(denoising, (str, Mapping))
    return denoised or is_ours(found["model"])


def changes_data(settings: Mapping[str, Any]) -> bool:
    """Whether ``noise`` or ``eval_mask`` of these settings ask for other data than RecBole makes."""
    noise, mask = settings.get("noise"), settings.get("eval_mask")
    # a number may be a parameter of somebody's model
    asked = isinstance(noise, Mapping) and any(noise.get(key) for key in ("recorded", *AMOUNTS))
    return asked or mask not in (None, False, "recbole")


def _is_on(block: Any) -> bool:
    return block is not None and block is not False


def _asked_of_us(
    model: str | type | None,
    config_file_list: Sequence[str | os.PathLike[str]] | None,
    config_dict: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The model's name, or "", and the blocks of all sources; no block where a source cannot be read."""
    keys = ("model", "guider", "denoising", "mirror_gradient", "noise", "eval_mask", "import")
    found: dict[str, Any] = {}
    try:
        for file in config_file_list or []:
            # GuiderConfig refuses a key that is there twice; RecBole's own runs keep to RecBole's reading
            found = merge(found, read_yaml(file, unique_keys=False))
        given = dict(config_dict or {})
        typed = [argument[2:].partition("=") for argument in sys.argv[1:] if argument.startswith("--")]
        for source in (given, {key: value for key, separator, value in typed if separator}):
            wanted = {key: value for key, value in source.items() if str(key).partition(".")[0] in keys}
            found = merge(found, {
                key: parse_value(key, value) if isinstance(value, str) else value for key, value in wanted.items()
            })
    except (GuiderError, TypeError, ValueError):
        return {"model": ""}
    name = model if model is not None else found.get("model")
    blocks = {key: found[key] for key in keys if key in found}
    return {**blocks, "model": name if isinstance(name, str) else getattr(name, "__name__", "")}


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
