"""One file per family of experiments: `get_config(variant)`, the words it offers in `VARIANTS`, and what to expect."""
