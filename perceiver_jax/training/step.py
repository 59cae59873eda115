"""One step of training and one of evaluation: pure, written for one device with a named axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from perceiver_jax.processes import parallel
from perceiver_jax.types import Array, Batch, Mean, Task, TrainState, Tree

STEP_FIGURES = frozenset((               # what a step reports besides the task's own metrics
  'learning_rate', 'gradient_norm', 'parameter_norm', 'skipped_steps', 'unreadable_examples'))

Apply = Callable[..., tuple[Any, Tree]]  # (params, state, key, batch, *, is_training) -> (outputs, state)


def init_state(
  params: Tree, state: Tree, optimizer: optax.GradientTransformation, ema_decay: float | None,
) -> TrainState:
  """The state before the first step."""
  zero = jnp.zeros([], jnp.int32)
  ema = None if ema_decay is None else jax.tree.map(jnp.copy, params)
  return TrainState(zero, params, state, optimizer.init(params), ema, zero)


def averaged(state: TrainState) -> Tree:
  """The parameters to evaluate with: their moving average where the run keeps one."""
  return state.params if state.ema is None else state.ema


def make_train_step(
  task: Task,
  apply: Apply,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: ConfigDict,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]:
  """The update for one device's rows of the batch; to be run by `parallel.over_devices`.

  It differentiates the *sum* of the loss, adds gradients and weights over micro-batches and devices, and divides once:
  uneven padding, masked tokens and accumulation are then right by construction. An update that is not finite is skipped
  (parameters, statistics and optimizer stay as they were), and `num_skipped` counts such steps in a row. What is not
  finite in an example of weight 0 is no reason to.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), state.step), parallel.device_index())
    gradients, model_state, means = _accumulate(task, apply, config.micro_batches, state, _zeroed(batch), key)
    gradients, means = parallel.sum_over_devices((gradients, means))
    weight = means['loss'][1]
    # The weight is float32; moments of the optimizer keep the dtype of the parameters.
    gradients = jax.tree.map(lambda g: (g / jnp.where(weight == 0, 1, weight)).astype(g.dtype), gradients)
    updated = _update(state, gradients, parallel.mean_over_devices(model_state), optimizer, config.ema_decay)
    norms = {'gradient_norm': optax.tree.norm(gradients), 'parameter_norm': optax.tree.norm(updated.params)}
    # Statistics of their own: a variance may overflow where loss and gradients do not, and would stay infinite.
    finite = _all_finite([*norms.values(), means['loss'][0], updated.state])
    kept = state._replace(step=state.step + 1, num_skipped=state.num_skipped + 1)
    means |= {name: (value, 1.0) for name, value in {'learning_rate': schedule(state.step), **norms}.items()}
    means = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), means)
    means['skipped_steps'] = (1.0 - finite, 1.0)
    # A training batch is never padded, so an example of weight 0 is one that could not be read.
    means['unreadable_examples'] = parallel.sum_over_devices((jnp.sum(batch['mask'] == 0.0), float(len(batch['mask']))))
    return _select(finite, updated, kept), means

  return train_step


def _accumulate(
  task: Task, apply: Apply, micro_batches: int, state: TrainState, batch: Batch, key: jax.Array,
) -> tuple[Tree, Tree, dict[str, Mean]]:
  """Gradients of the loss sum, the model's state, and metrics, added up over micro-batches."""

  def loss_sum(params: Tree, model_state: Tree, key: jax.Array, rows: Batch) -> tuple[Any, tuple[Tree, Tree]]:
    rows = with_typed_keys(rows)
    outputs, model_state = apply(params, model_state, key, rows, is_training=True)
    means = measured(task, outputs, rows)
    return means['loss'][0], (model_state, means)

  differentiate = jax.grad(loss_sum, has_aux=True)
  keys = jax.random.split(key, micro_batches)
  # XLA compiles even a loop of one turn as a loop, and in a loop a CPU needs 20 times as long for a convolution.
  if micro_batches == 1:
    gradients, (model_state, means) = differentiate(state.params, state.state, keys[0], batch)
    return gradients, model_state, means

  def micro_step(carry: tuple[Tree, Tree], rows_and_key: tuple[Batch, jax.Array]) -> tuple[tuple[Tree, Tree], None]:
    model_state, sums = carry
    rows, key = rows_and_key
    gradients, (model_state, means) = differentiate(state.params, model_state, key, rows)
    return (model_state, jax.tree.map(jnp.add, sums, (gradients, means))), None

  rows = {name: x.reshape(micro_batches, -1, *x.shape[1:]) for name, x in batch.items()}
  shapes = jax.eval_shape(loss_sum, state.params, state.state, key, {name: x[0] for name, x in rows.items()})
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, shapes[1][1]))
  (model_state, (gradients, means)), _ = jax.lax.scan(micro_step, (state.state, zeros), (rows, keys))
  return gradients, model_state, means


def _update(
  state: TrainState,
  gradients: Tree,
  model_state: Tree,
  optimizer: optax.GradientTransformation,
  ema_decay: float | None,
) -> TrainState:
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = None if ema_decay is None else optax.incremental_update(params, state.ema, 1.0 - ema_decay)
  return TrainState(state.step + 1, params, model_state, opt_state, ema, jnp.zeros_like(state.num_skipped))


def _zeroed(batch: Batch) -> Batch:
  """The batch with zeros for the floating numbers of examples that do not count, which may be NaN: 0 * NaN = NaN."""
  def zeroed(x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return jnp.where(jnp.reshape(batch['mask'] == 0, [-1, *[1] * (x.ndim - 1)]), 0, x)

  return {name: zeroed(x) for name, x in batch.items()}


def _all_finite(tree: Tree) -> jax.Array:
  floating = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floating]))


def _select(condition: jax.Array, if_true: Tree, if_false: Tree) -> Tree:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def with_typed_keys(batch: Batch) -> dict[str, Array]:
  """Returns the batch with 'key', [B, 2] uint32, as random keys [B]."""
  return {**batch, 'key': jax.random.wrap_key_data(jnp.asarray(batch['key']), impl='threefry2x32')}


def measured(task: Task, outputs: Any, batch: Batch) -> dict[str, Mean]:
  """Returns what the task measures."""
  assert task.measure is not None           # or experiment.build had refused it
  return task.measure(outputs, batch)


def evaluate_batch(
  task: Task, apply: Apply, params: Tree, state: Tree, batch: Batch,
) -> tuple[dict[str, Mean], dict[str, Array]]:
  """Returns what `measure` says of a batch, and the rows that `scores` needs, with their mask; {} without scores."""
  batch = with_typed_keys(_zeroed(batch))
  outputs, _ = apply(params, state, None, batch, is_training=False)
  rows = {**task.per_example(outputs, batch), 'mask': batch['mask']} if task.per_example else {}
  return measured(task, outputs, batch), rows


def make_eval_step(task: Task, apply: Apply) -> Callable[[Tree, Tree, Batch], tuple[dict[str, Mean], dict[str, Array]]]:
  """Returns the evaluation of one device's rows of a batch; to be run by `parallel.over_devices`.

  It sums means over the devices, and gathers the rows of all of them.
  """
  def eval_step(params: Tree, state: Tree, batch: Batch) -> tuple[dict[str, Mean], dict[str, Array]]:
    means, rows = evaluate_batch(task, apply, params, state, batch)
    return parallel.sum_over_devices(means), parallel.gather_over_devices(rows)

  return eval_step
