from .reference import correlation_kd  # placeholder until the ops land
__all__ = ["correlation_kd"]
