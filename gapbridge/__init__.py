"""gapbridge: compose models and close their performance gaps with PyTorch Lightning."""

__version__ = "0.1.0"
