"""The Perceiver, knowing no modality: attention, positions, encoder, processor, decoder."""
