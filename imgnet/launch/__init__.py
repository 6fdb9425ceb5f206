"""From a composed configuration to workers that train: on this machine, or as a part of somebody's own job."""

from imgnet.launch.start import launch

__all__ = ["launch"]
