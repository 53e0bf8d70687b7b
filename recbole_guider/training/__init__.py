"""Training: trainers, checkpoints, mirror gradient, several processes.

Each is imported by its own name: most trainings need two of them.

    trainer.py          GUIDER's training around RecBole's loop: calibrator, teacher and student
    checkpoint.py       checkpoints of plain data that resume exactly
    mirror_gradient.py  batches that take a step down their loss and a smaller one back up
    settings.py         the ``mirror_gradient`` block
    parallel/           several processes that give the numbers of one
"""
