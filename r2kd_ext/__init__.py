from .functional import correlation_kd
__all__ = ["correlation_kd"]
