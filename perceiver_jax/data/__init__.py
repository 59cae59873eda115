"""Records to NumPy batches: one module per data set, `load(config, split) -> Source`, and the pipeline they share.

The only home of data libraries; never imports JAX or Haiku.
"""

import os

# OpenCV reads both once, when it loads, so they are set before any module here imports it. Its own limit on the size of
# an image (2 ** 30 pixels) lets a small hostile file take 3 GB per reader thread; its log repeats, without the name of
# the file, what the pipeline reports.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2 ** 27))
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
