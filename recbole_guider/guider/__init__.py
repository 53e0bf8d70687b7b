"""GUIDER around a backbone: teacher and student, what they learn, and the calibration of a RecBole data set."""
