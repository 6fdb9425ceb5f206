"""Train image classifiers with many workers: AllReduce and decentralized, side by side."""

__version__ = "0.1.0"
