"""ItemKNNCBF: what is most similar by content to the items that a user has; nothing is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType
from torch import Tensor, nn

from recbole_guider.graph import shrunk_cosine_graph
from recbole_guider.models.content import required_content
from recbole_guider.utils.settings import Count, NonNegative, Settings


class ItemKNNCBFParameters(Settings):
    """The parameters of :class:`ItemKNNCBF`."""

    knn_k: Count = Field(default=10, description="the number of similar items that an item votes for, itself included")
    shrink: NonNegative = Field(
        default=10, description="added to the denominator of the similarity: small vectors become less similar"
    )


class ItemKNNCBF(GeneralRecommender):
    r"""Item-based nearest neighbours on content, for any number of modalities.

    With x_i the features of all modalities side by side, as they come,

        s(i, j) = <x_i, x_j> / (|x_i| |x_j| + shrink),    score(u, j) = sum over i in I_u, j in N(i) of s(i, j),

    where I_u are the user's training items and N(i) the ``knn_k`` items most similar to i, i among them. It learns
    nothing: RecBole runs one empty epoch. Similarities are computed in blocks and kept sparse, ``knn_k`` an item.

    A modality that an item has no row in is zero for it: the product counts what both items have. An item without
    content at all is nobody's neighbour and has none.

    Source: Ferrari Dacrema, Cremonesi and Jannach, Are We Really Making Much Progress? A Worrying Analysis of Recent
    Neural Recommendation Approaches, RecSys 2019, in the form that MMRec compares with: neighbours are those of the
    user's items (there: of the item that is scored), and an item takes one place among its own.

    Raises:
        GuiderError: the data set has no content, ``knn_k`` is below 1 or ``shrink`` below 0.
    """

    settings_class = ItemKNNCBFParameters
    reads_content = True
    type = ModelType.TRADITIONAL
    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        k: int = config["knn_k"]
        shrink: float = config["shrink"]
        content = np.concatenate([part.values * part.present[:, None] for part in features.values()], axis=1)
        present = np.any([part.present for part in features.values()], axis=0)
        similarity = shrunk_cosine_graph(torch.from_numpy(content).to(self.device), k, shrink, present)
        self.similarity = similarity.to_scipy()
        self.interactions = dataset.inter_matrix(form="csr").astype(np.float32)
        self.interactions.sum_duplicates()
        self.interactions.data[:] = 1.0  # a repeated pair is one interaction
        self.unused = nn.Parameter(torch.zeros(()))  # RecBole's optimiser and loss need something

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        return 0.0 * self.unused

    def predict(self, interaction: Interaction) -> Tensor:
        # copies: scipy sets whether an index may be written to, which numpy refuses where torch owns the memory
        users, items = (interaction[field].cpu().numpy().copy() for field in (self.USER_ID, self.ITEM_ID))
        scores = (self.interactions[users] @ self.similarity)[np.arange(len(users)), items]
        return torch.from_numpy(np.asarray(scores).ravel()).to(self.device)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        users = interaction[self.USER_ID].cpu().numpy()
        scores = (self.interactions[users] @ self.similarity).toarray()
        return torch.from_numpy(scores).to(self.device).view(-1)
