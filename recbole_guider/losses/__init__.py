"""Losses as pure functions of tensors: DBPR, distillation by optimal transport and by KL."""
