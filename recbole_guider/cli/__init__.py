"""The commands of ``recbole-guider``, one file each: arguments in, one call, clear errors.

A file has ``add_arguments(parser)``, ``run(arguments, rest)`` and a ``COMMAND`` (``command.py``), which ``main.py``
lists by name.
"""
