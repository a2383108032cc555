"""Distillation of teachers into students."""
