"""From captions to features: the frozen language model, keywords, and the cache of features."""
