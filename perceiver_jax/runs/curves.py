"""TensorBoard's curves, written without TensorFlow or TensorBoard."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping


def open_curves(directory: str, last_step: int):
  """tensorboardX's writer of a new file, which voids what earlier ones say of steps beyond `last_step`."""
  hides_torch = 'torch' not in sys.modules
  if hides_torch:  # tensorboardX would import it where it is installed: seconds, for nothing
    sys.modules['torch'] = None  # type: ignore[assignment]
  try:
    from tensorboardX.event_file_writer import EventsWriter
  finally:
    if hides_torch:
      del sys.modules['torch']
  os.makedirs(directory, exist_ok=True)
  # Named by the second and by us, or a run that resumes within it would write over the file before.
  events = EventsWriter(os.path.join(directory, 'events'), f'.{os.getpid()}.{last_step}')
  _cut_curves(events, last_step)
  return events


def _cut_curves(events, last_step: int) -> None:
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  events.write_event(Event(step=last_step + 1, session_log=SessionLog(status=SessionLog.START)))
  events.flush()


def add_to_curves(events, step: int, values: Mapping[str, float]) -> None:
  """Not by tensorboardX's own thread: should it die of a full disk, its queue fills, and the run waits for ever."""
  from tensorboardX.proto.event_pb2 import Event
  from tensorboardX.proto.summary_pb2 import Summary

  points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if math.isfinite(value)]
  events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))
  events.flush()
