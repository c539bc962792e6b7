"""Images with captions and labels, wherever they are stored: one vocabulary of column names, one reader."""
