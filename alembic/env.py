"""Runs migrations on the connection that the server passes, or on the database from the settings."""

from alembic import context
from sqlalchemy import Connection

from app.database.engine import database_url, open_database
from app.database.tables import Base


def migrate(connection: Connection) -> None:
    """Run the requested migrations on this connection."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite cannot alter a table: it is copied
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if context.is_offline_mode():
    context.configure(url=database_url(), target_metadata=Base.metadata, literal_binds=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
elif given is not None:
    migrate(given)
else:
    engine = open_database(database_url(), foreign_keys=False)
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
