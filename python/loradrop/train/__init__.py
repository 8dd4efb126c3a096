"""Training of correctors by distillation; needs the extra ``train``."""
