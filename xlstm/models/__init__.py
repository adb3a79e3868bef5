"""The two architectures, in plain PyTorch behind one interface.

    model = build_model(config)                     # MLSTMConfig or TransformerConfig
    logits = model(tokens, document_ids=ids)        # (B, S) to (B, S, vocabulary)
    loss = next_token_loss(logits, targets)         # nats a token
    logits, state = model.extend(tokens, state)     # piece by piece

`layers` holds what both share, `mlstm` and `transformer` their backbones, `language_model` what is around
them, `decoding` what generation keeps. Weights of the mLSTM have the names of xlstm_large;
`xlstm.checkpoints` reads and writes those of others.
"""

from xlstm.models.language_model import LanguageModel, build_model, next_token_loss

__all__ = ["LanguageModel", "build_model", "next_token_loss"]
