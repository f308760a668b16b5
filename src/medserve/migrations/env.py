"""Alembic's way in: the migrations run in the transaction that `medserve.database` has opened."""

from alembic import context

from medserve.database import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
