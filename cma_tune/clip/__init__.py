"""open_clip backbones, frozen: images to features, token embeddings to features."""
