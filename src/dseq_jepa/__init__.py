"""DSeq-JEPA: self-supervised pre-training experiments, from pictures to the paper's tables."""

__version__ = "0.1.0"
