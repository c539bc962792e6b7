"""Images: safe reading and fetching, resizing, preprocessing."""
