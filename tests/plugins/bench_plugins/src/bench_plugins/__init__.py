"""Small real detectors, one for each capability of the detector contract."""
