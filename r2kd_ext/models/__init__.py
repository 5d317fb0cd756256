"""Networks by name: `create(name, num_classes)`, `names()`."""

from .registry import create, names

__all__ = ["create", "names"]
