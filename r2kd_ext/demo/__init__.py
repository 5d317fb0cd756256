"""The demo: four ways of distillation on handwritten digits (`r2kd demo`)."""
