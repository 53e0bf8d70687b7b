"""GUIDER around a backbone: teacher and student, what they learn, and the calibration of a RecBole data set.

Each is imported by its own name: ``settings.py`` is read where neither torch nor RecBole is loaded.

    settings.py           the ``guider`` block
    model.py              Guider, the model of a run: holds teacher and student, and asks the others
    plan.py               who learns what, decided once
    calibration.py        from a RecBole training set to what AMSC says of its interactions, and back into its batches
    calibration_cache.py  calibrations that are kept
    teacher.py            the DBPR loss of a batch
    distiller.py          the distillation loss of a batch
    weighting.py          how a model that keeps its own loss learns from clean probabilities
    released.py           ``variant: released``, what the published code does
"""
