"""``recbole-guider benchmark SPEC.yaml``: models x methods x data sets x noise x seeds, one row a run.

``spec.py`` says which runs there are, ``data.py`` which files they read, ``cell.py`` does one, ``progress.py`` keeps
what a stopped one has done, ``runner.py`` does all that are missing, ``report.py`` makes tables, tests and plots.
"""
