"""Bytes on disk: atomic writes, memory maps, wire formats, lines of text."""
