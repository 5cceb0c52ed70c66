"""What a reader sees: tables, figures, pages, and the words for columns."""
