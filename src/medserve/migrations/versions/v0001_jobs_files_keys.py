"""The first tables: jobs, their items, uploaded files, and API keys.

What a migration once made is written down here and never imported: the tables of today may look different.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("started", sa.Float(53)),
        sa.Column("ended", sa.Float(53)),
        sa.Column("expires", sa.Float(53)),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("cancelling", sa.Boolean, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("order", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("folder", sa.Text),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("home", sa.Text),
        sa.Column("gateway", sa.Text),
        sa.Column("claim", sa.Text),
        sa.Column("lease", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="jobs_pkey"),
    )
    op.create_index("jobs_state_created", "jobs", ["state", "created"])
    op.create_index("jobs_owner_created", "jobs", ["owner", "created"])
    op.create_table(
        "job_items",
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("place", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("result", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="job_items_job_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "place", name="job_items_pkey"),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("expires", sa.Float(53), nullable=False),
        sa.Column("home", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="files_pkey"),
    )
    op.create_index("files_owner_created", "files", ["owner", "created"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("per_minute", sa.Integer),
        sa.Column("at_once", sa.Integer),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("expires", sa.Float(53)),
        sa.Column("revoked", sa.Float(53)),
        sa.Column("last_used", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="keys_pkey"),
        sa.UniqueConstraint("name", name="keys_name_key"),
        sa.UniqueConstraint("digest", name="keys_digest_key"),
    )


def downgrade() -> None:
    """Remove the tables and all that is in them."""
    for table in ("keys", "files", "job_items", "jobs"):
        op.drop_table(table)
