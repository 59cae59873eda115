"""One experiment a file: `make(config) -> Task`. `config.task = 'x'` is `tasks/x.py`."""
