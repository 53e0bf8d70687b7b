"""Training in several processes that gives the numbers of one.

Every process has the whole model and iterates the same batches from the same seeds, so that whatever training draws
(negatives, graphs, users) is the same everywhere. Of each batch a process computes the loss of its rows, and gradients
are summed (``losses.py``); of an evaluation it ranks its users, and the rankings are brought together before a metric
is computed (``evaluation.py``). RecBole's own distributed path, which gives each process batches of its own and
averages metrics over padded shares, is not used: to RecBole every process looks like a single one.

    losses.py          the loss of a whole batch from its parts
    evaluation.py      the users of an evaluation, dealt to the processes
    requirements.py    what the processes must have in common
    launch.py          starts the processes, ends them together

Which process is this, and a process' part of a batch: ``utils/distributed.py`` and ``utils/batch_parts.py``.
"""
