"""FREEDOM against the authors' implementation (in MMRec): the same weights, graph and batch give the same numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from reference import reference


def test_freedom_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference(
        "FREEDOM", tmp_path, knn_k=4, dropout=0.0, reg_weight=0.1, embedding_size=8,
        modality_weights={"image": 0.3, "text": 0.7},
    )
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    for projection, name in zip(model.projections, ("image", "text"), strict=True):
        ours.place(projection.weight, given[f"weight.{name}_trs.weight"])
        ours.place(projection.bias, given[f"weight.{name}_trs.bias"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
