"""SQLite stores that follow events: transactions, the settlement log, and what makes a table a projection."""
