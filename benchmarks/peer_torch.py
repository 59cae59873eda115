"""Models of other people in Torch, to be compared: made equal in work to ours, on made-up arrays.

Where a peer's own model does other work, its parts are put together as the papers say: widening 1, blocks that share
their parameters, a cross-attend of as many channels as the inputs have. Nothing is dropped out.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.peer_work import Folders, Work, module, perceiver_io


def build(implementation: str, work: Work, folders: Folders, num_threads: int | None) -> dict[str, Any]:
  """{'run', 'parameters'} of 'huggingface', 'perceiver_pytorch' or 'perceiver_io'. Raises UserError."""
  torch = module('torch')
  if num_threads:
    torch.set_num_threads(num_threads)
  torch.manual_seed(0)
  models = {'huggingface': huggingface, 'perceiver_pytorch': perceiver_pytorch, 'perceiver_io': krasserm}
  model = models[implementation](work, folders).train(work.is_step)
  image = torch.randn(work.batch, work.size, work.size, 3)
  run = functools.partial(_step if work.is_step else _forward, torch, model, image)
  return {'run': run, 'parameters': sum(parameter.numel() for parameter in model.parameters())}


def _forward(torch: Any, model: Any, image: Any) -> Any:
  with torch.no_grad():
    return model(image)


def _step(torch: Any, model: Any, image: Any) -> None:
  model.zero_grad(set_to_none=True)
  model(image).square().sum().backward()


def huggingface(work: Work, folders: Folders) -> Any:
  """PerceiverForImageClassificationFourier, but for an image of any size: it only knows 224."""
  torch, transformers = module('torch'), module('transformers')
  parts = module('transformers.models.perceiver.modeling_perceiver')
  config = transformers.PerceiverConfig(
    num_latents=work.num_latents, d_latents=work.latent_channels, num_blocks=work.num_blocks,
    num_self_attends_per_block=work.num_layers, num_self_attention_heads=work.num_heads, num_cross_attention_heads=1,
    self_attention_widening_factor=1, cross_attention_widening_factor=1, attention_probs_dropout_prob=0.0,
    num_labels=work.num_classes)
  preprocessor = parts.PerceiverImagePreprocessor(
    config, prep_type='pixels', spatial_downsample=1, fourier_position_encoding_kwargs={
      'num_bands': work.num_bands, 'max_resolution': (work.size, work.size), 'concat_pos': True, 'sine_only': False})
  decoder = parts.PerceiverClassificationDecoder(
    config, num_channels=work.latent_channels, use_query_residual=True,
    trainable_position_encoding_kwargs={'num_channels': work.latent_channels, 'index_dims': 1})
  perceiver = parts.PerceiverModel(config, decoder=decoder, input_preprocessor=preprocessor)

  base: Any = torch.nn.Module

  class Classifier(base):
    def __init__(self) -> None:
      super().__init__()
      self.perceiver = perceiver

    def forward(self, image: Any) -> Any:
      return self.perceiver(image.permute(0, 3, 1, 2)).logits

  return Classifier()


def perceiver_pytorch(work: Work, folders: Folders) -> Any:
  """Its attention and norms, with a plain MLP: its own has a gate and four times the width. No biases of q, k, v."""
  module('perceiver_pytorch', folders.peers_site)
  torch, parts = module('torch'), module('perceiver_pytorch.perceiver_pytorch')
  num_channels, width = work.latent_channels, 3 + 2 * (2 * work.num_bands + 1)

  def attend(context_channels: int | None, num_heads: int, head_channels: int) -> Any:
    attention = parts.Attention(num_channels, context_channels, heads=num_heads, dim_head=head_channels)
    return parts.PreNorm(num_channels, attention, context_dim=context_channels)

  def mlp() -> Any:
    layers = torch.nn.Linear(num_channels, num_channels), torch.nn.GELU(), torch.nn.Linear(num_channels, num_channels)
    return parts.PreNorm(num_channels, torch.nn.Sequential(*layers))

  base: Any = torch.nn.Module

  class Perceiver(base):
    def __init__(self) -> None:
      super().__init__()
      pairs, pair = torch.nn.ModuleList, lambda attention: torch.nn.ModuleList([attention, mlp()])
      self.latents = torch.nn.Parameter(0.02 * torch.randn(work.num_latents, num_channels))
      self.cross = pairs(pair(attend(width, 1, width)) for _ in range(min(2, work.num_cross_attends)))
      self.layers = pairs(
        pair(attend(None, work.num_heads, num_channels // work.num_heads)) for _ in range(work.num_layers))
      if work.kind == 'io':
        self.query = torch.nn.Parameter(0.02 * torch.randn(1, num_channels))
        self.decoder = pair(attend(num_channels, 1, num_channels))
      self.output = torch.nn.Linear(num_channels, work.num_classes)
      axis = parts.fourier_encode(torch.linspace(-1, 1, work.size), work.size, work.num_bands)
      rows = axis[:, None].expand(work.size, work.size, -1)
      self.register_buffer('positions', torch.cat([rows, rows.transpose(0, 1)], dim=-1).flatten(0, 1))

    def forward(self, image: Any) -> Any:
      positions = self.positions.expand(work.batch, -1, -1)
      inputs = torch.cat([image.flatten(1, 2), positions], dim=-1)
      x = self.latents.expand(work.batch, -1, -1)
      for block in range(work.num_blocks):
        if block < work.num_cross_attends:
          x = self._after(self.cross[min(block, 1)], x, context=inputs)
        for layer in self.layers:
          x = self._after(layer, x)
      if work.kind == 'io':
        return self.output(self._after(self.decoder, self.query.expand(work.batch, -1, -1), context=x))[:, 0]
      return self.output(x.mean(dim=1))

    def _after(self, layer: Any, x: Any, **context: Any) -> Any:
      x = layer[0](x, **context) + x
      return layer[1](x) + x

  return Perceiver()


def krasserm(work: Work, folders: Folders) -> Any:
  """Its encoder, which expresses both papers, and its decoder or, of v1, the mean of the latents and a linear."""
  torch, core = module('torch'), perceiver_io(folders)
  adapter_base: Any = core.InputAdapter
  base: Any = torch.nn.Module

  class Adapter(adapter_base):
    def __init__(self) -> None:
      encoding = core.FourierPositionEncoding((work.size, work.size), work.num_bands)
      super().__init__(3 + encoding.num_position_encoding_channels())
      self.encoding = encoding

    def forward(self, image: Any) -> Any:
      return torch.cat([image.flatten(1, 2), self.encoding(work.batch)], dim=-1)

  adapter = Adapter()
  encoder = core.PerceiverEncoder(
    adapter, work.num_latents, work.latent_channels, num_cross_attention_heads=1,
    num_cross_attention_qk_channels=adapter.num_input_channels, num_cross_attention_layers=work.num_cross_attends,
    num_self_attention_heads=work.num_heads, num_self_attention_layers_per_block=work.num_layers,
    num_self_attention_blocks=work.num_blocks)
  if work.kind == 'io':
    decoder = core.PerceiverDecoder(
      core.ClassificationOutputAdapter(work.num_classes, work.latent_channels),
      core.TrainableQueryProvider(1, work.latent_channels), work.latent_channels, num_cross_attention_heads=1)
    return core.PerceiverIO(encoder, decoder)

  class Mean(base):
    def forward(self, latents: Any) -> Any:
      return latents.mean(dim=1)

  return torch.nn.Sequential(encoder, Mean(), torch.nn.Linear(work.latent_channels, work.num_classes))
