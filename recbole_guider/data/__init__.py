"""Item features, data sets, noise and conversion: everything between the files and the calibrator.

Each is imported by its own name: settings and noise do without RecBole.

    dataset.py     GuiderDataset, RecBole's data set with item content; the loaders of a run
    features.py    files of content as matrices with a mask of who has a row
    eval_mask.py   what is hidden from a ranking, and how many users are ranked at a time
    checks.py      what is wrong with data, found before anything is trained
    settings.py    the ``noise`` block
    noise.py       noise of a known size and place, as functions of arrays
    noisy_copy.py  a data set with noise, written to disk
    convert.py     foreign data sets made ready
    folder.py      a data set's folder and YAML file, written together
    tables.py      tables of text, read as text
"""
