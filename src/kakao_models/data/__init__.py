"""Images and image-text data: reading pictures from anywhere, and the originals' resizing in numpy."""
