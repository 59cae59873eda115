"""What needs TensorFlow, which has an environment of its own: `make test-tf` says where; `make test` passes by."""

from __future__ import annotations

import os

collect_ignore_glob = [] if 'PERCEIVER_TF_PYTHON' in os.environ else ['test_*.py']
