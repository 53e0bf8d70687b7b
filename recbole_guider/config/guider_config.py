"""RecBole's configuration with a ``guider`` block that merges key by key, dotted keys, and a device of one's
choice."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config

from recbole_guider.config.blocks import complete_blocks
from recbole_guider.config.device import Process, choose_device, device_request, stored_request
from recbole_guider.config.merging import BLOCKS, merge, merge_all, parse_values, split_arguments
from recbole_guider.config.registry import PREFIX, ensure_registered
from recbole_guider.config.resolution import check_found_by_name, resolve_model, teacher_values, trained_class
from recbole_guider.config.validation import check_values, unknown_keys
from recbole_guider.denoising.settings import DenoisingSettings
from recbole_guider.guider.settings import GuiderSettings
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
    ``properties/model/<Backbone>.yaml``, ``dataset_configs/<dataset>.yaml``), the user's files in their order,
    ``config_dict``, the command line; :func:`~recbole_guider.config.merging.merge` says how they combine. ``null``
    removes an entry of ``modalities``.

    ``guider: false`` (or null, or no block) is the plain model, unless the model is named ``GUIDER_<Backbone>``, where
    only ``false`` is. ``GUIDER_FREEDOM``, and ``FREEDOM`` with the block, are the same configuration.

    Beyond RecBole's entries: ``config["model"]`` is ``GUIDER_<Backbone>`` when the block is on,
    ``config["backbone"]`` the model itself, ``config["guider"]`` the full settings as a dict, or False.
    ``eval_mask`` and ``noise`` are read from the block or from the top level, and serve plain models too, also
    where the block is switched off; after reading, both places agree.

    Where ``local_rank`` is given, the configuration is that of one of several processes:
    ``distributed.join(config.process)`` comes next.

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
    #: The class of the model itself, ``config["backbone"]``.
    backbone_class: type
    #: What the run trains: the model itself, or what GUIDER or a denoising method puts around it.
    model_class: type
    #: Which of several processes the configuration is for, or None where there is one.
    process: Process | None
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
        #: a whole configuration, which replaces the defaults
        self._stored = merge({}, _stored or {})
        #: what a user wrote, in the order in which it counts, and what ``import`` names in it
        self._sources: list[Mapping[str, Any]] = []
        self._imports: list[str] = []
        if isinstance(config_file_list, (str, os.PathLike)):
            config_file_list = [config_file_list]
        super().__init__(model, dataset, config_file_list, config_dict)
        rank = self.process.rank if self.process else distributed.rank()
        if self._unknown and rank == 0:
            warn_once(f"settings that nothing reads: {', '.join(self._unknown)}")
        del self._command_line, self._stored, self._sources, self._imports, self._guider_on, self._unknown
        self.model_class = trained_class(self.backbone_class, self.guider_settings, self.denoising_settings)
        if self.is_found_by_name:
            check_found_by_name(self)

    # -- RecBole's hooks, in the order in which its constructor calls them ------------------------------------------

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
        return merge_all(self._source(read_yaml(file), Path(file).resolve().parent) for file in file_list or [])

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        return merge({}, self._source(parse_values(config_dict or {}), Path.cwd()))

    def _load_cmd_line(self) -> dict[str, Any]:
        arguments = self._command_line
        if arguments is None:
            arguments = [] if "ipykernel_launcher" in sys.argv[0] else sys.argv[1:]
        return merge({}, self._source(parse_values(split_arguments(arguments)), Path.cwd()))

    def _source(self, content: dict[str, Any], folder: Path) -> dict[str, Any]:
        """``content``, noted as one of the sources; what it imports starts from ``folder``."""
        self._imports += import_extensions(content.get("import"), folder)
        self._sources.append(content)
        return content

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict = merge_all(self._sources, self._stored)

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        said = self.external_config_dict
        backbone, self._guider_on, self.denoising_settings = resolve_model(said, model)
        if dataset is None and not said.get("dataset"):
            raise GuiderError(
                "no data set is given: name one with --dataset=, as `dataset:` in a file or in config_dict."
            )
        self.backbone_class = backbone
        name = PREFIX + backbone.__name__ if self._guider_on else backbone.__name__
        return name, backbone, said["dataset"] if dataset is None else dataset

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        backbone = model_class.__name__
        super()._load_internal_config_dict(backbone, model_class, dataset)
        of_dataset = dataset_configs_dir() / f"{dataset}.yaml"
        files = (properties_dir() / "overall.yaml", properties_dir() / "model" / f"{backbone}.yaml", of_dataset)
        contents = {file: read_yaml(file) for file in files if file.is_file()}
        self.internal_config_dict = merge_all(contents.values(), self.internal_config_dict)
        known = self.parameters["Dataset"]
        known += [key for key in contents.get(of_dataset, ()) if key not in known and key not in BLOCKS]

    def _get_final_config_dict(self) -> dict[str, Any]:
        # not onto external_config_dict: a dotted key sets an entry of a default
        final = merge_all(self._sources, {**self.internal_config_dict, **self._stored})
        backbone = final["backbone"] = self.backbone_class.__name__
        final["import"] = list(dict.fromkeys(self._imports)) or None
        given = {**self.variable_config_dict, **self.cmd_config_dict}
        # before values: a slip in the name of a block leaves it out
        self._unknown = unknown_keys(
            given, self.file_config_dict,
            [*self.internal_config_dict, *(key for keys in self.parameters.values() for key in keys)],
            (*BLOCKS, "eval_mask"), self.backbone_class,
        )
        self.guider_settings = complete_blocks(final, self._guider_on, self.denoising_settings)
        # what a run was stored with, it ran with
        check_values({key: final[key] for key in given if key in final} if self._stored else final, backbone)
        if self.guider_settings and self.guider_settings.schedule == "pretrained" and final["eval_step"] <= 0:
            raise GuiderError(
                f"eval_step is {final['eval_step']}: with guider.schedule pretrained it must be 1 or more."
            )
        return final

    def _set_default_parameters(self) -> None:
        #: what a checkpoint stores where RecBole, or the choice of the device, replaces what was asked for
        self._asked = {key: self.final_config_dict[key] for key in ("data_path", "use_gpu")}
        self._asked["device"] = device_request(self.final_config_dict)
        with recboles_errors():
            super()._set_default_parameters()

    def _init_device(self) -> None:
        self.process = choose_device(
            self.final_config_dict, self.file_config_dict, self.variable_config_dict, self.cmd_config_dict
        )

    def _set_train_neg_sample_args(self) -> None:
        with recboles_errors():
            super()._set_train_neg_sample_args()

    def _set_eval_neg_sample_args(self, phase: str) -> None:
        with recboles_errors():
            super()._set_eval_neg_sample_args(phase)

    # -- views and copies -------------------------------------------------------------------------------------------

    def teacher_config(self) -> GuiderConfig:
        """The configuration to make the teacher with, whose ``["model"]`` is the teacher's name: this one, with the
        values of :func:`~recbole_guider.config.resolution.teacher_values`. Changes do not reach this configuration.

        Raises:
            GuiderError: the guider block is off.
        """
        if self.guider_settings is None:
            raise GuiderError("the guider block is off: a plain model has no teacher.")
        view = copy.copy(self)
        view.model_class, view.final_config_dict = teacher_values(self.final_config_dict, self.guider_settings)
        view.model, view.backbone_class = self.guider_settings.teacher, view.model_class
        return view

    def to_plain(self) -> dict[str, Any]:
        """This configuration as str, int, float, bool, None, list, tuple and dict: what a checkpoint stores.

        ``data_path`` is the folder that holds the data set's folder, as in a file, and ``device`` what was
        asked for (``auto``); what belongs to the process (ranks, ports) is left out. A value of another type
        is left out too, with a warning.
        """
        plain: dict[str, Any] = {}
        final = dict(self.final_config_dict)
        final.update(self._asked)
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
        cls, plain: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, model: type | None = None
    ) -> GuiderConfig:
        """The configuration that :meth:`to_plain` described, without reading the command line or any user's file.

        Args:
            plain: what :meth:`to_plain` gave.
            overrides: keys that win over the stored ones, read like ``config_dict`` (dotted keys, merging
                blocks; ``data_path`` is the folder that holds the data set's folder).
            model: the model's class, where it is one that the registry does not know.

        Raises:
            GuiderError: as the constructor. A stored request for CUDA becomes ``auto`` where there is none.
        """
        stored = dict(plain)
        if "device" in stored:
            stored["device"] = stored_request(stored["device"])
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
        ensure_registered(self.backbone_class)
