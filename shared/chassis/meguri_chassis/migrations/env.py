"""Alembic's entry: runs the versions of one service on the connection that `Database.migrate` holds."""

from alembic import context
from sqlmodel import SQLModel

context.configure(connection=context.config.attributes["connection"], target_metadata=SQLModel.metadata)
context.run_migrations()
