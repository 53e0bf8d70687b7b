"""The contrastive loss that graph recommenders share."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from recbole_guider.losses import soft_negative_sum


def info_nce(
    view: Tensor, other: Tensor, temperature: float, candidates: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    r"""InfoNCE of two views of the same B things: each row of one shall recognise its own row among all of the other.

    - mean_b log[ exp(cos(a_b, o_b) / tau) / sum_c exp(cos(a_b, o_c) / tau) ],

    whose sum over c is one autograd node that makes no [B, C] array.

    Args:
        view, other: a, o ``[B, d]``, any lengths.
        temperature: tau > 0.
        candidates: what c runs over, ``[C, d]``, the rows of ``other`` among them; None: the rows of ``other``.
        counts: how often each of the B counts in the mean ``[B]``, above 0; None: once.

    Returns:
        A scalar; 0 for no rows.

    Raises:
        GuiderError: the temperature is not above 0.

    Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018.
    """
    if not len(view):
        return view.sum()
    view, other = normalize(view, dim=1), normalize(other, dim=1)
    own = (view * other).sum(dim=1)
    if counts is not None:
        own = counts * own
    all_rows = other if candidates is None else normalize(candidates, dim=1)
    difference = soft_negative_sum(view, all_rows, temperature=temperature, weights=counts) - own.sum()
    return difference / (temperature * (len(view) if counts is None else counts.sum()))
