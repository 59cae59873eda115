"""The models that the papers compare a Perceiver with: one function each, from pixels to logits.

All have one signature: (pixels [B, H, W, F], num_classes, model, *, is_training) -> logits [B, E]; `model` is
config.model, of which each reads what it needs.
"""

from perceiver_jax.baselines.resnet import resnet20, resnet50
from perceiver_jax.baselines.transformer import transformer
from perceiver_jax.baselines.vit import vit

BACKBONES = {'resnet50': resnet50, 'resnet20': resnet20, 'vit': vit, 'transformer': transformer}
