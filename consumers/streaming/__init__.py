"""Streaming inference on Qwen2.5-VL."""
