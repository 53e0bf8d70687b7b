"""From what the user wrote to one checked RecBole ``Config``.

Each is imported by its own name: merging and settings do without RecBole.

    guider_config.py  GuiderConfig, RecBole's Config with the blocks of this package
    merging.py        the sources and how they combine; values of the command line
    registry.py       from a model's name to its class; which models there are
    validation.py     names that nobody reads, and values that would be seen late
    trainers.py       which trainer a run has
    settings.py       the settings that all models have beside RecBole's
    reference.py      property files and docs/settings.md, made of the declarations
"""
