"""What a measurement is kept with: the day, the machine, the versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any


def surroundings(packages: Iterable[str]) -> dict[str, Any]:
  """{'date', 'hardware': {'processor', 'cores'}, 'versions': {'python', package: version}}; all that JSON can hold."""
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    'date': datetime.date.today().isoformat(),
    'hardware': {'processor': _processor(), 'cores': os.cpu_count()},
    'versions': {'python': platform.python_version(), **versions},
  }


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record, indent=2) + '\n')


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')      # Linux alone has it; of other systems Python knows at least the kind
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor() or platform.machine()
