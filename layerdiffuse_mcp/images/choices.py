"""How pictures are shown; nothing heavy is imported."""

VIEWED = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
"""Formats that a picture is shown in, and their media types."""
