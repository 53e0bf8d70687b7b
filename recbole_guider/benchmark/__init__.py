"""``recbole-guider benchmark SPEC.yaml``: models x methods x data sets x noise x seeds, one row a run.

``spec.py`` says which runs there are, ``data.py`` which files they read, ``cell.py`` does one, ``runner.py`` all that
are missing, ``report.py`` makes the tables, the tests and the plots.
"""
