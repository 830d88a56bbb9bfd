"""Where records live: the Store (SQLite or PostgreSQL), its backups, and the registry of adapters."""
