"""From observed ranges to the numbers in the files: calibration tables and encodings."""
