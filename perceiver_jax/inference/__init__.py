"""Trained models at work: `load(name or directory)`, then raw input in and predictions out.

A task's file here offers `predict`, from raw input to a prediction, and `present(predictor, inputs, output) -> texts`,
what the command `predict` does: it reads the files or the text named in `inputs`, yields what to print as soon as it is
known, and then writes a picture to `output` where that is not None. `SUFFIXES` are those that `output` may have.
"""
