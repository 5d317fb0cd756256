"""Networks by name: `create(name, num_classes)`, `load(name, path, num_classes)`, `names()`."""

from .checkpoint import load
from .registry import create, names

__all__ = ["create", "load", "names"]
