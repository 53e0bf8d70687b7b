"""Denoising methods to compare GUIDER with, on any backbone that ranks by BPR or binary cross-entropy.

``denoising: <name>`` in a configuration selects one. Each file has the method's loss as a pure function and a
:class:`~recbole_guider.denoising.base.DenoisingMethod` with its state; :mod:`recbole_guider.denoising.model` puts it
around a backbone. Every formula is written from the paper; where the authors' code does something else, the docstring
says so.
"""
