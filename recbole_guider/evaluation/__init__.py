"""What is made of evaluations: detection of noise, significance."""

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
