"""From a person's files to words and a picture: what `predict` does for the models of each task.

Every module offers `present(predictor, inputs, output) -> text`: it reads the files (or the text) named in `inputs`,
asks the predictor (of `perceiver_jax.load`), writes a picture to `output` where that is not None, and returns what to
print.
"""
