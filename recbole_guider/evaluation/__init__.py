"""What is made of evaluations.

    detection.py     how well noise is found where it is known
    significance.py  whether one model is better than another
"""

from recbole_guider.evaluation.detection import detection_figures, detection_line, detection_report, worst_group
from recbole_guider.evaluation.significance import Comparison, compare, holm, paired_t, signed_rank

__all__ = [
    "Comparison",
    "compare",
    "detection_figures",
    "detection_line",
    "detection_report",
    "holm",
    "paired_t",
    "signed_rank",
    "worst_group",
]
