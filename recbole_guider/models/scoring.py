"""How a recommender's scores are reached: as a product of two matrices, as rows over all items, or pair by pair.

GUIDER wraps models that it has not seen. What it can teach them, and what they can teach, depends on this alone:

- ``factorised``: scores are ``U V^T``. Distillation runs over the whole catalogue without ever building a score row.
- ``rows``: the model gives all scores of a user at once (autoencoders). Distillation runs over the whole catalogue too.
- ``candidates``: the model scores pairs (NeuMF). Distillation runs over sampled items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from logging import getLogger
from typing import Any, NamedTuple

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender, AutoEncoderMixin
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.models.base import Encoding, FactorisedRecommender
from recbole_guider.utils.errors import GuiderError

FACTORISED, ROWS, CANDIDATES = "factorised", "rows", "candidates"

#: Users whose rows of the user matrix are computed together where a model computes them from their histories.
_USERS_AT_ONCE = 1024
# How far parameters are moved before a model's scores are compared with the product of its matrices.
_SPREAD = 0.1


class Factors(NamedTuple):
    """Scores as a product: the score of user u for item i is ``<users(u), items[i]>``.

    Attributes:
        users: ids int64 [B] -> rows [B, d]. A function, because some models compute a row from the user's history, and
            a batch needs few of them.
        items: item matrix [n_items, d].
    """

    users: Callable[[Tensor], Tensor]
    items: Tensor


def _forward(model: Any) -> Factors:
    users, items = model.forward()[:2]
    return Factors(users.__getitem__, items)


def _embeddings(model: Any) -> Factors:
    return Factors(model.user_embedding, model.item_embedding.weight)


def _sgl(model: Any) -> Factors:
    users, items = model.forward(model.train_graph)
    return Factors(users.__getitem__, items)


def _enmf(model: Any) -> Factors:
    # h^T (p_u * q_i)
    return Factors(lambda users: model.user_embedding(users) * model.H_i.weight, model.item_embedding.weight)


def _gcmc(model: Any) -> Factors:
    # The score is the class "observed": sum_b c_b u^T W_b v
    users, items = model.GcEncoder(model.user_features, model.item_features)
    coefficients = model.BiDecoder.dense_layer.weight[1]
    users = users @ sum(c * weight for c, weight in zip(coefficients, model.BiDecoder.weights, strict=True))
    return Factors(users.__getitem__, items)


def _fism(model: Any) -> Factors:
    # |I_u|^-alpha sum_{j in I_u} <p_j, q_i> + b_u + b_i, the biases as two more dimensions
    def users(ids: Tensor) -> Tensor:
        history = model.item_src_embedding(model.history_item_matrix[ids]) * model.mask_mat[ids].unsqueeze(2)
        coefficient = model.history_lens[ids].clamp_min(1).to(history.dtype) ** -model.alpha
        bias = model.user_bias[ids].unsqueeze(1)
        return torch.cat([coefficient.unsqueeze(1) * history.sum(dim=1), bias, torch.ones_like(bias)], dim=1)

    bias = model.item_bias.unsqueeze(1)
    return Factors(users, torch.cat([model.item_dst_embedding.weight, torch.ones_like(bias), bias], dim=1))


def _simplex(model: Any) -> Factors:
    def users(ids: Tensor) -> Tensor:
        history = model.item_emb(model.history_item_id[ids])
        joined = model.get_UI_aggregation(model.user_emb(ids), history, model.history_item_len[ids])
        return normalize(joined, dim=1)

    return Factors(users, normalize(model.item_emb.weight, dim=1))


def _dmf(model: Any) -> Factors:
    # RecBole computes the items without gradients; those of its sparse product do not mix with half precision
    with torch.autocast(model.device.type, enabled=False):
        items = model.get_item_embedding()
    return Factors(lambda users: model.user_fc_layers(model.get_user_embedding(users)), items)


class _Product(NamedTuple):
    factors: Callable[[Any], Factors]
    #: an increasing function that the model applies to the product
    link: Callable[[Tensor], Tensor] | None = None


#: RecBole's models whose scores are a product, by the class whose ``full_sort_predict`` says so: a subclass that
#: overrides it is not meant.
_PRODUCTS = {
    f"recbole.model.general_recommender.{name.lower()}.{name}": product
    for name, product in {
        "BPR": _Product(_embeddings),
        "DGCF": _Product(_forward),
        "DMF": _Product(_dmf, torch.sigmoid),
        "ENMF": _Product(_enmf),
        "FISM": _Product(_fism),
        "GCMC": _Product(_gcmc),
        "LightGCN": _Product(_forward),
        "LINE": _Product(_embeddings),
        "NCL": _Product(_forward),
        "NGCF": _Product(_forward),
        "SGL": _Product(_sgl),
        "SimpleX": _Product(_simplex),
        "SpectralCF": _Product(_forward),
    }.items()
}


def _definer(model_class: type, method: str) -> str:
    """The dotted name of the class that defines ``method`` for ``model_class``."""
    for each in model_class.__mro__:
        if method in vars(each):
            return f"{each.__module__}.{each.__qualname__}"
    return ""


def _implements(model_class: type, method: str) -> bool:
    return getattr(model_class, method, None) is not getattr(AbstractRecommender, method)


def scoring_kind(model_class: type) -> str:
    """``factorised``, ``rows`` or ``candidates``: how a class of recommenders scores, as far as the class tells.

    A graph model of someone's own may turn out to be ``factorised`` once it is built; see :class:`Scoring`.

    Raises:
        GuiderError: it has neither ``predict`` nor ``full_sort_predict``.
    """
    if issubclass(model_class, FactorisedRecommender) or _definer(model_class, "full_sort_predict") in _PRODUCTS:
        return FACTORISED
    full, pairs = _implements(model_class, "full_sort_predict"), _implements(model_class, "predict")
    if full and (issubclass(model_class, AutoEncoderMixin) or not pairs):
        return ROWS
    if pairs:
        return CANDIDATES
    raise GuiderError(
        f"model {model_class.__name__} has neither predict nor full_sort_predict: give it one of them, or derive it "
        f"from recbole_guider.models.base.FactorisedRecommender."
    )


class Scoring:
    """The scores of one model, whatever kind it is.

    A model that keeps its matrices in ``restore_user_e`` and ``restore_item_e`` and computes them by ``forward()``,
    as RecBole's graph models and many outside it do, counts as factorised if the product of the two is what its
    ``full_sort_predict`` gives.

    Args:
        model: a general recommender.

    Raises:
        GuiderError: as :func:`scoring_kind`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.kind = scoring_kind(type(model))
        #: whether what counts are the cosines of the factors' rows; see :meth:`compare_by_cosines`
        self.by_cosines = False
        self._product = _PRODUCTS.get(_definer(type(model), "full_sort_predict"))
        if self.kind != FACTORISED and _looks_like_a_graph_model(model):
            self._product = _Product(_forward)
            if self._product_is_right():
                self.kind = FACTORISED

    @property
    def factorised(self) -> bool:
        """Whether scores are a product of two matrices."""
        return self.kind == FACTORISED

    @property
    def name(self) -> str:
        """The model's class name."""
        return type(self.model).__name__

    def compare_by_cosines(self) -> None:
        """From here on the scores of a factorised model are cosines: it is going to be trained by them."""
        if not self.factorised:
            return
        self.by_cosines = True
        if isinstance(self.model, FactorisedRecommender):
            self.model.compare_by_cosines()

    def factors(self, encoding: Encoding | None = None) -> Factors:
        """The two factors as the model makes them, with gradients; only of a factorised model.

        Args:
            encoding: what ``model.encode()`` gave for this batch, so that it is not computed again.
        """
        if isinstance(self.model, FactorisedRecommender):
            encoding = self.model.encode() if encoding is None else encoding
            return Factors(encoding.users.__getitem__, encoding.items)
        assert self._product is not None, "only called for models whose scores factorise"
        return self._product.factors(self.model)

    def scored_factors(self, encoding: Encoding | None = None) -> Factors:
        """The two factors whose product is what the model is scored by: of unit length where those are cosines.

        Args:
            encoding: as of :meth:`factors`.
        """
        factors = self.factors(encoding)
        if not self.by_cosines:
            return factors
        return Factors(lambda users: normalize(factors.users(users), dim=1), normalize(factors.items, dim=1))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """U [n_users, d] and V [n_items, d] that a factorised model is scored by, all users at once; meant for
        ``no_grad``."""
        return self.whole(self.scored_factors())

    def whole(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """Both matrices of these factors, all users at once."""
        ids = torch.arange(self.model.n_users, device=factors.items.device)
        return torch.cat([factors.users(part) for part in ids.split(_USERS_AT_ONCE)]), factors.items

    def link(self, products: Tensor) -> Tensor:
        """From products of the matrices to the scores that the model itself gives (a sigmoid, or nothing)."""
        if self.by_cosines or self._product is None or self._product.link is None:
            return products
        return self._product.link(products)

    def rows(self, users: Tensor) -> Tensor:
        """Scores [B, n_items] of users int64 [B], by the model's ``full_sort_predict`` as its parameters are now."""
        with _without_cache(self.model):
            scores: Tensor = self.model.full_sort_predict(Interaction({self.model.USER_ID: users}))
        return scores.view(len(users), -1)

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [M] of users int64 [M] for items int64 [M], by the model's ``predict``."""
        scores: Tensor = self.model.predict(Interaction({self.model.USER_ID: users, self.model.ITEM_ID: items}))
        return scores.view(-1)

    def chosen(self, users: Tensor, items: Tensor, encoding: Encoding | None = None) -> Tensor:
        """Scores [B, C] of users [B] for items [B, C], by the shortest way that the model has."""
        if self.kind == FACTORISED:
            factors = self.scored_factors(encoding)
            return (factors.users(users).unsqueeze(1) * factors.items[items]).sum(dim=2)
        if self.kind == ROWS:
            return self.rows(users).gather(1, items)
        return self.pairs(users.repeat_interleave(items.shape[1]), items.reshape(-1)).view(items.shape)

    @torch.no_grad()
    def _product_is_right(self) -> bool:
        """Whether the product equals the model's own scores for a few users."""
        model = self.model
        model.to(model.device)  # where its constants are already
        ids = torch.arange(1, min(4, model.n_users), device=model.device)
        try:
            with as_in_evaluation(model), _moved(model):
                factors = self.factors()
                expected, got = self.rows(ids), factors.users(ids) @ factors.items.T
                return expected.shape == got.shape and torch.allclose(expected, got, rtol=1e-4, atol=1e-5)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # it only looked like one: nobody promised that its forward() can be called like this, whatever that raises
            getLogger().info(f"{self.name} has restore_user_e and restore_item_e, but no such product: {error}")
            return False


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """RecBole's graph models keep the matrices of an evaluation until their next loss: here none are read or left."""
    kept = [name for name in ("restore_user_e", "restore_item_e") if hasattr(model, name)]
    for name in kept:
        setattr(model, name, None)
    try:
        yield
    finally:
        for name in kept:
            setattr(model, name, None)


@contextmanager
def _moved(model: nn.Module) -> Iterator[None]:
    """Parameters away from their initial values, where a term that starts at zero would not be seen."""
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=_SPREAD)
        yield
    finally:
        for parameter, values in zip(parameters, before, strict=True):
            parameter.copy_(values)


def _looks_like_a_graph_model(model: Any) -> bool:
    if not (hasattr(model, "restore_user_e") and hasattr(model, "restore_item_e")):
        return False
    return not [
        parameter
        for parameter in signature(model.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


@contextmanager
def as_in_evaluation(*models: nn.Module) -> Iterator[None]:
    """Within this context dropout is off and models use their whole graphs.

    Only the flags change: ``eval()`` and ``train()`` would also tell a model that an epoch has passed.
    """
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


def explicit(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [B, n] that lie there, as two factors ([B, B], [n, B]): ``S = I S``."""
    return torch.eye(len(scores), dtype=scores.dtype, device=scores.device), scores.T


def trainable(model: nn.Module) -> Sequence[nn.Parameter]:
    """The parameters that training may change."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
