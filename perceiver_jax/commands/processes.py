"""The flags that say which of several processes this is."""

from __future__ import annotations

from typing import Any

from absl import flags


def define_processes(flag_values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT of process 0 of several, where no cluster says it.', flag_values)
  flags.DEFINE_integer(
    'num_processes', None, 'How many processes train together; 1 for this one alone, whatever cluster it is in.',
    flag_values=flag_values, lower_bound=1)
  flags.DEFINE_integer(
    'process_id', None, 'Which of them this is, from 0.', flag_values=flag_values, lower_bound=0)


def processes(flag_values: flags.FlagValues) -> dict[str, Any]:
  """Returns what the command line says of the processes; None for what is to be found out."""
  return {name: flag_values[name].value for name in ('coordinator_address', 'num_processes', 'process_id')}
