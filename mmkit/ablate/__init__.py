"""Arms side by side: how sure their figures are, what differs between them, and one page that shows it."""
