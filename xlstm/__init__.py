"""Models, their accounting, tokenised data and training. Importing this package does not import torch."""
