"""Every bridge between RecBole 1.2.1 and the releases around it: one function each, why it is there, when it
can go.

A shim changes RecBole where possible, and numpy, scipy and torch only by what they removed. None changes a
number of RecBole's models: with the releases that RecBole was written for, each is without effect. A shim
takes the RecBole module that it is for and runs when that module has been imported, so that this package can
be imported without RecBole's seconds.
"""

from __future__ import annotations

import functools
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


def apply() -> None:
    """Put every shim in place, now or when its module of RecBole is imported; a second call does nothing.

    Importing recbole_guider calls it, and so does every worker process that unpickles something of this
    package.
    """
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _AfterImport())
    for name, shims in _SHIMS.items():
        if name in sys.modules:
            for shim in shims:
                shim(sys.modules[name])


def after_import(name: str, hook: Callable[[ModuleType], None]) -> None:
    """Call ``hook`` with the module called ``name`` when its code has run, or now if it has; once for each hook.

    Hooks of a module run in the order in which they came, after the shims of this file.
    """
    apply()
    if hook in _SHIMS.get(name, ()):
        return
    _SHIMS[name] = (*_SHIMS.get(name, ()), hook)
    if name in sys.modules:
        hook(sys.modules[name])


class _AfterImport(MetaPathFinder):
    """Runs the shims of a module right after its own code."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _SHIMS or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_shim(module: ModuleType) -> None:
            run(module)
            for shim in _SHIMS[fullname]:
                shim(module)

        spec.loader.exec_module = run_and_shim  # type: ignore[method-assign]  # of this one module's loader
        return spec


def quiet_ray(recbole: ModuleType) -> None:
    """Silence ``pkg_resources is deprecated as an API``.

    Why: ray 2.6, which RecBole imports, causes it at import; a user of RecBole can do nothing about it.
    Can go when RecBole allows a ray that does not import pkg_resources (2.8 and later).
    """
    warnings.filterwarnings("ignore", "pkg_resources is deprecated as an API", UserWarning)


def ray_version_parser(ray: ModuleType) -> None:
    """Give ray.data the module that it reads version numbers with, ``pkg_resources._vendor.packaging.version``.

    Why: ray 2.6, which RecBole pins, takes ``packaging`` out of setuptools, which keeps no copy there since
        version 71.
    Can go when RecBole allows a ray that imports packaging itself (2.8 and later).
    """
    if "pkg_resources" in sys.modules and find_spec("pkg_resources._vendor") is None:
        from packaging import version

        sys.modules["pkg_resources._vendor.packaging.version"] = version


def pandas_formatter(formats: ModuleType) -> None:
    """Give pandas' ``ExtensionArrayFormatter``, which ray.data derives from, its name back.

    Why: pandas 2.2 put an underscore in front of it.
    Can go with :func:`ray_version_parser`.
    """
    if not hasattr(formats, "ExtensionArrayFormatter"):
        formats.ExtensionArrayFormatter = formats._ExtensionArrayFormatter  # type: ignore[attr-defined]


def numpy_aliases(recbole: ModuleType) -> None:
    """Give numpy back the names that RecBole uses: ``np.float`` and the like, ``np.float_`` and the like.

    Why: numpy 1.24 removed the first; RecBole's own bridge (``Config.compatibility_settings``) restores them
        from the
    second, which numpy 2 removed, and runs too late for code that needs no Config. What is there already
    stays.
    Can go when RecBole's sources use the builtin types.
    """
    gone = {
        "float_": np.float64,
        "complex_": np.complex128,
        "unicode_": np.str_,
        "bool": np.bool_,
        "int": np.int_,
        "float": np.float64,
        "complex": np.complex128,
        "object": np.object_,
        "str": np.str_,
        "long": np.int_,
        "unicode": np.str_,
    }
    for name, scalar in gone.items():
        if name not in vars(np):  # hasattr would make numpy warn
            setattr(np, name, scalar)


def scipy_dok_update(recbole: ModuleType) -> None:
    """Give scipy's ``dok_matrix`` its method ``_update`` back: set many entries from a dict of (row, column)
    -> value.

    Why: scipy 1.13 removed it; RecBole's LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN and MCCLK build their
        graphs with it.
    Can go when RecBole builds them another way.
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):

        def update(self: Any, data: dict[tuple[int, int], Any]) -> None:
            self._dict.update(data)

        dok_matrix._update = update


def pandas_reading(dataset_module: ModuleType) -> None:
    """Let RecBole read atomic files into the columns that it expects: text as objects, empty sequences as "".

    Why: pandas 3 reads text into a string type of its own, and ``df[field].fillna("", inplace=True)``, by
        which RecBole
    fills empty sequences, changes a copy: the next line then splits a NaN. Only RecBole's data set module is
    affected: its name ``pd`` gets another ``read_csv``.
    Can go when RecBole assigns the filled column back (``df[field] = df[field].fillna("")``).
    """
    import pandas as pd

    if not _pandas_3():
        return

    def read_csv(*args: Any, **kwargs: Any) -> Any:
        frame = pd.read_csv(*args, **kwargs)
        for column in frame.columns:
            if isinstance(frame[column].dtype, pd.StringDtype):
                frame[column] = frame[column].astype(object)
            if str(column).endswith("_seq"):
                frame[column] = frame[column].fillna("")
        return frame

    dataset_module.pd = _Overlay(pd, read_csv=read_csv)  # type: ignore[attr-defined]  # a module's name


def pandas_loading(dataset_module: ModuleType) -> None:
    """Let RecBole's data sets fill missing values and measure sequences on pandas 3, and silence pandas 2
    about both.

    Why: in ``Dataset._fill_nan`` the chained ``feat[field].fillna(..., inplace=True)`` changes a copy since
        pandas 3, so
    that the padding row of a float column stays NaN: the same values are now filled in before.
    ``Series.agg(len)``, in the remapping, normalising and binning of sequences, gives one number since pandas
    3, not one for each row: within the loading of a data set it has its old meaning. pandas 2.1 to 2.3
    announce both changes in warnings that a user can do nothing about; so does pandas 3.1 of ``inplace=True``, which
    RecBole filters its tables by and pandas 4 removes (setup.py keeps pandas below 4 until then).
    Can go when RecBole assigns the filled column back and uses ``Series.map(len)``.
    """
    Dataset: Any = dataset_module.Dataset
    fill_nan, from_scratch, to_interaction = (
        Dataset._fill_nan,
        Dataset._from_scratch,
        Dataset._dataframe_to_interaction,
    )

    @functools.wraps(fill_nan)
    def fill_nan_in_place(self: Any) -> None:
        if _pandas_3():
            _fill_columns(self)
        fill_nan(self)

    @functools.wraps(from_scratch)
    def load(self: Any) -> None:
        with _sequence_lengths(), warnings.catch_warnings():
            told = (".*inplace method.*", ".*chained assignment.*", ".*in Series.agg.*", "The inplace keyword in.*")
            for message in told:
                warnings.filterwarnings("ignore", message, Warning, module=r"recbole\.data\.")
            from_scratch(self)

    @functools.wraps(to_interaction)
    def convert(self: Any, data: Any) -> Any:
        with warnings.catch_warnings():
            # pandas 3 marks a column's array read-only; nothing else uses the table once it is converted
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return to_interaction(self, data)

    Dataset._fill_nan = fill_nan_in_place
    Dataset._from_scratch = load
    Dataset._dataframe_to_interaction = convert


def _fill_columns(dataset: Any) -> None:
    """What ``Dataset._fill_nan`` means to fill: 0 in token columns, the mean in float columns."""
    from recbole.utils import FeatureType

    for name in dataset.feat_name_list:
        feat = getattr(dataset, name)
        for field in feat:
            if dataset.field2type[field] == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0)
            elif dataset.field2type[field] == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())


@contextmanager
def _sequence_lengths() -> Iterator[None]:
    """``Series.agg(len)`` gives the length of each entry, here and now."""
    import pandas as pd

    original = pd.Series.agg

    @functools.wraps(original)
    def agg(self: Any, func: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self.map(len) if func is len else original(self, func, *args, **kwargs)

    pd.Series.agg = agg
    try:
        yield
    finally:
        pd.Series.agg = original


def numpy_argsort(interaction_module: ModuleType) -> None:
    """Let RecBole sort its interactions without handing numpy a tensor to wrap the result in.

    Why: ``Interaction.sort`` calls ``np.argsort`` of a tensor, and numpy 2 announces that it will stop calling torch's
    ``__array_wrap__`` as it is. Only RecBole's module is affected: its name ``np`` gets another ``argsort``. The
    positions are the same, as a tensor.
    Can go when RecBole calls torch.argsort, or torch's __array_wrap__ takes numpy 2's arguments.
    """
    import torch

    def argsort(values: Any, *args: Any, **kwargs: Any) -> Any:
        return torch.from_numpy(np.argsort(np.asarray(values), *args, **kwargs))

    interaction_module.np = _Overlay(np, argsort=argsort)  # type: ignore[attr-defined]  # a module's name


def torch_load_of_trainers(trainer_module: ModuleType) -> None:
    """Let RecBole's own trainers resume from, and test, RecBole's own checkpoints.

    Why: since torch 2.6 ``torch.load`` reads plain data only, and RecBole's checkpoints hold a pickled
        Config. There, and
    only there, a file that is not plain data is read as before, which trusts the file as RecBole always did.
    A trainer that is not RecBole's own class keeps torch's rule.
    Can go when RecBole stores plain data, or passes weights_only=False itself.
    """

    def of_recbole(trainer: Any) -> bool:
        return type(trainer).__module__.partition(".")[0] == "recbole"

    for name, trainer in list(vars(trainer_module).items()):
        if not name.endswith("Trainer") or not isinstance(trainer, type):
            continue
        for method in ("resume_checkpoint", "evaluate"):
            if method in vars(trainer):
                setattr(trainer, method, _reading_pickles(vars(trainer)[method], of_recbole))


def torch_load_of_quick_start(quick_start_module: ModuleType) -> None:
    """Let RecBole's ``load_data_and_model`` read RecBole's own checkpoints; why and until when: as there."""
    wrapped = _reading_pickles(quick_start_module.load_data_and_model, lambda model_file: True)
    package = sys.modules.get("recbole.quick_start")
    for module in (quick_start_module, package):
        if hasattr(module, "load_data_and_model"):
            module.load_data_and_model = wrapped  # type: ignore[union-attr]  # a module that has it


def _reading_pickles(function: Callable[..., Any], applies: Callable[[Any], bool]) -> Callable[..., Any]:
    """``function``, within which ``torch.load`` falls back to pickles if ``applies(first argument)``."""
    import torch

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not applies(args[0] if args else None):
            return function(*args, **kwargs)
        original = torch.load

        def load(*load_args: Any, **load_kwargs: Any) -> Any:
            if load_kwargs.get("weights_only") is not None:
                return original(*load_args, **load_kwargs)
            try:
                with warnings.catch_warnings():
                    # said of a pickle, which is then read as one
                    warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                    return original(*load_args, **{**load_kwargs, "weights_only": True})
            except pickle.UnpicklingError:
                return original(*load_args, **{**load_kwargs, "weights_only": False})

        torch.load = load
        try:
            return function(*args, **kwargs)
        finally:
            torch.load = original

    return wrapped


@contextmanager
def without_tensorboard() -> Iterator[None]:
    """Within this context RecBole's trainers, which open a TensorBoard file when they are made, open none.

    Can go when RecBole lets a trainer be made without one.
    """
    import recbole.trainer.trainer as trainer_module

    opening = trainer_module.get_tensorboard
    trainer_module.get_tensorboard = lambda logger: _NoWriter()
    try:
        yield
    finally:
        trainer_module.get_tensorboard = opening


class _NoWriter:
    """Stands for TensorBoard's writer."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        pass

    def add_hparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def torch_amp(trainer_module: ModuleType) -> None:
    """Point RecBole's trainer to ``torch.amp`` instead of ``torch.cuda.amp``.

    Why: torch 2.4 deprecated the latter, which now warns at every batch. The meaning is the same.
    Can go when RecBole imports torch.amp.
    """
    import torch

    if hasattr(torch.amp, "GradScaler"):
        trainer_module.amp = SimpleNamespace(  # type: ignore[attr-defined]  # a module's name
            autocast=functools.partial(torch.amp.autocast, "cuda"),
            GradScaler=functools.partial(torch.amp.GradScaler, "cuda"),
        )


def collected_counts(collector_module: ModuleType) -> None:
    """Let RecBole evaluate ItemCoverage, GiniIndex, TailPercentage and AveragePopularity.

    Why: their collector moves all that it has collected to the CPU, and of the training data it has numbers and
        counters, which lie on no device.
    Can go when RecBole moves tensors only.
    """
    import torch

    Collector: Any = collector_module.Collector
    get_data_struct = Collector.get_data_struct

    @functools.wraps(get_data_struct)
    def without_counts(self: Any) -> Any:
        collected = self.data_struct._data_dict
        counts = {key: value for key, value in collected.items() if not isinstance(value, torch.Tensor)}
        for key in counts:
            del collected[key]
        try:
            returned = get_data_struct(self)
        finally:
            collected.update(counts)
        returned._data_dict.update(counts)
        return returned

    Collector.get_data_struct = without_counts


def ncl_without_faiss(ncl_module: ModuleType) -> None:
    """Let RecBole's NCL find its clusters with scikit-learn where faiss is not installed.

    Why: RecBole does not require faiss, and its NCL cannot train an epoch without. The algorithm is the same, Lloyd's
        from random points with 25 iterations; the clusters differ as they do between two seeds. At most as many
        clusters are made as there are points.
    Can go when RecBole requires faiss, or does without.
    """
    if find_spec("faiss") is not None:
        return

    def run_kmeans(self: Any, x: Any) -> tuple[Any, Any]:
        import torch
        from sklearn.cluster import KMeans

        count = min(self.k, len(np.unique(x, axis=0)))
        found = KMeans(count, init="random", n_init=1, max_iter=25, random_state=1234).fit(x)
        centroids = torch.nn.functional.normalize(torch.from_numpy(found.cluster_centers_).float(), dim=1)
        return centroids.to(self.device), torch.from_numpy(found.labels_).long().to(self.device)

    ncl_module.NCL.run_kmeans = run_kmeans


def torch_sparse_constructor(recbole: ModuleType) -> None:
    """Keep ``torch.sparse.FloatTensor``, by which RecBole's graph models build their adjacencies, and silence it.

    Why: torch deprecates it, and warns of it at every model that is made; a user of RecBole can do nothing about it.
    Can go when RecBole calls torch.sparse_coo_tensor.
    """
    import torch

    for said in (r"torch\.sparse\.SparseTensor", "Sparse invariant checks", "Creating a tensor from a list of numpy"):
        warnings.filterwarnings("ignore", said, UserWarning, module=r"recbole\.")
    if not hasattr(torch.sparse, "FloatTensor"):
        torch.sparse.FloatTensor = torch.sparse_coo_tensor


def sampling_within_epoch(dataloader_module: ModuleType) -> None:
    """Let the models of this package tell dynamic negative sampling from an evaluation.

    Why: it calls ``eval()`` and ``train()`` around every batch, as RecBole does around an evaluation between two
        epochs; models that make a graph once for each epoch would make one for each batch.
    Can go when RecBole tells a model of its epochs, or samples without changing its mode.
    """
    loader: Any = dataloader_module.NegSampleDataLoader
    neg_sampling = loader._neg_sampling

    @functools.wraps(neg_sampling)
    def sample(self: Any, inter_feat: Any) -> Any:
        with within_epoch():
            return neg_sampling(self, inter_feat)

    loader._neg_sampling = sample


_epoch_goes_on = False


@contextmanager
def within_epoch() -> Iterator[None]:
    """Within this context ``eval()`` and ``train()`` do not tell a model that an epoch has passed.

    RecBole's dynamic negative sampling calls both around the scores of every batch.
    """
    global _epoch_goes_on
    before, _epoch_goes_on = _epoch_goes_on, True
    try:
        yield
    finally:
        _epoch_goes_on = before


def epoch_goes_on() -> bool:
    """Whether the code that runs is :func:`within_epoch`."""
    return _epoch_goes_on


def _pandas_3() -> bool:
    import pandas as pd

    return int(pd.__version__.partition(".")[0]) >= 3


class _Overlay(ModuleType):
    """A module with some of its names replaced, for one importer."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


#: RecBole's modules (and ray, which it pins), and what each needs once it is there.
_SHIMS: dict[str, tuple[Callable[[ModuleType], None], ...]] = {
    "ray": (ray_version_parser,),
    "pandas.io.formats.format": (pandas_formatter,),
    "recbole": (quiet_ray, numpy_aliases, scipy_dok_update),
    "recbole.data.interaction": (numpy_argsort,),
    "recbole.data.dataset.dataset": (pandas_reading, pandas_loading),
    "recbole.data.dataloader.abstract_dataloader": (sampling_within_epoch,),
    "recbole.evaluator.collector": (collected_counts,),
    "recbole.model.abstract_recommender": (torch_sparse_constructor,),
    "recbole.model.general_recommender.ncl": (ncl_without_faiss,),
    "recbole.trainer.trainer": (torch_load_of_trainers, torch_amp),
    "recbole.quick_start.quick_start": (torch_load_of_quick_start,),
}
