"""Item features, data sets, noise and conversion: everything between the files and the calibrator."""
