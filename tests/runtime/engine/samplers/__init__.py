"""Tests of llama.cpp's samplers."""
