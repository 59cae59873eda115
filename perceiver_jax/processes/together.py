"""One piece of work done by several processes, none of which ends without the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perceiver_jax.processes import parallel
from perceiver_jax.processes.watch import Watch


def together(
  work: Callable[[], int], processes: Mapping[str, Any], timeout: float, explain: Callable[[BaseException], int],
) -> int:
  """Does the work as one of several processes, where there are several. Returns its exit code, the same in all.

  Where the work fails in one of them, or one dies, all end at once, with a message.

  Args:
    work: what all do.
    processes: which of how many this is, as `parallel.join` takes it.
    timeout: seconds after which one that gives no sign of life is taken for dead.
    explain: says what an error is, and returns the exit code for it.

  Raises:
    UserError: as `parallel.join` does. And whatever `work` raises, where the process is alone.
  """
  # JAX is to notice later than the watch, which says more.
  parallel.join(**processes, timeout=2 * timeout + 10)
  if parallel.num_processes() == 1:
    return work()
  watch = Watch(timeout)
  try:
    exit_code = work()
    parallel.meet()
  except (Exception, KeyboardInterrupt) as error:
    watch.fail(error, explain)
  watch.finish()
  parallel.part()
  return exit_code
