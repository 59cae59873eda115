"""What the papers compare a Perceiver with: one function per model, from pixels to logits."""
