"""From a person's files to words and a picture: what `predict` does for the models of each task.

Every module offers `present(predictor, inputs, output) -> iterator of texts`: it reads the files (or the text) named in
`inputs`, asks the predictor (of `perceiver_jax.load`), gives what to print as soon as it is known, and after that
writes a picture to `output` where that is not None. `SUFFIXES` are those that the name of `output` may have.
"""
