"""fp16 and int8 files: `files` writes them, `calibration` and `sensitivity` measure what int8 needs."""
