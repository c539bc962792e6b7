"""The most pixels that an image may have: by its header, a larger one is refused before it is decoded."""

MAX_PIXELS = 178_956_970  # the most that PIL itself opens without an error
MAX_SHOWN_PIXELS = 50_000_000  # for a service or a page, where anyone may send images or URLs
