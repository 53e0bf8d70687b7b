"""What every other folder may use; it uses none of them. Each is imported by its own name.

Loading this folder loads nothing: not all of it works without torch, and little of it needs that.

    errors.py          what the package raises, and the nearest of the names that were allowed
    settings.py        the base of every block of settings, and what is said of a wrong value
    yaml_files.py      reading and writing property files
    plain.py           values as plain data, for files and checkpoints
    arguments.py       property files and settings on the command line
    atomic_io.py       files that appear whole or not at all
    paths.py           paths as users write them
    resources.py       where the package's own YAML files lie
    extensions.py      files of a user's own: ``import:`` and ``--import``
    requirements.py    whether what is installed fits, by the package's own metadata
    compat.py          every bridge over RecBole and the libraries around it, and when it can go
    recbole_errors.py  what RecBole says of bad input, in this package's words
    interactions.py    who has which item: one index for all that asks
    groups.py          values cut into groups of about equal size
    model_state.py     what a model keeps beside its parameters
    distributed.py     which process this is, and values that all share
    batch_parts.py     the part of a batch that a process computes
    threads.py         how many threads torch computes with
"""
