"""Batches of training interactions that a method draws for itself, as the backbone's loader makes them."""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_guider.denoising.base import Context
from recbole_guider.utils.interactions import InteractionIndex


class NegativeSampler:
    """Makes a batch of chosen training interactions, each with one item that its user does not have.

    Args:
        context: of the run.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        model = context.model
        self.fields = (model.USER_ID, model.ITEM_ID, model.NEG_ITEM_ID, model.label_field)
        self.pairwise = model.pairwise
        self.observed = InteractionIndex(context.users, context.items, context.n_users, context.n_items)

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """int64 [M]: for each user an item that is none of the user's, uniform; any item for users who have all."""
        items = torch.randint(1, self.context.n_items, (len(users),), generator=generator)
        for _ in range(100):
            again = torch.from_numpy(self.observed.has(users.numpy(), items.numpy()))
            if not again.any():
                break
            items[again] = torch.randint(1, self.context.n_items, (int(again.sum()),), generator=generator)
        return items

    def batch(self, chosen: Tensor, generator: torch.Generator) -> Interaction:
        """A batch in the form of the backbone's loader, on the device of the backbone.

        Args:
            chosen: int64 [P], training interactions, on the CPU.
            generator: where the sampled items come from.
        """
        user_field, item_field, negative_field, label_field = self.fields
        users, items = self.context.users[chosen], self.context.items[chosen]
        others = self.draw(users, generator)
        if self.pairwise:
            columns = {user_field: users, item_field: items, negative_field: others}
        else:
            labels = torch.cat([torch.ones(len(users)), torch.zeros(len(users))])
            columns = {user_field: users.repeat(2), item_field: torch.cat([items, others]), label_field: labels}
        return Interaction(columns).to(self.context.config["device"])
