"""Generations and their lanes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "generation",
        sa.Column("id", sa.String(24), nullable=False),
        sa.Column("run", sa.String(200), nullable=False),
        sa.Column("feature", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(128), nullable=False),
        sa.Column("author", sa.String(60), nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generation"),
    )
    op.create_index("ix_generation_fingerprint_created_at", "generation", ["fingerprint", "created_at"])
    op.create_index("ix_generation_run_feature_created_at", "generation", ["run", "feature", "created_at"])
    op.create_table(
        "lane",
        sa.Column("generation_id", sa.String(24), nullable=False),
        sa.Column("lane", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("strength", sa.Float(), nullable=False),
        sa.Column("writes", sa.Boolean(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", "lane", name="pk_lane"),
        sa.ForeignKeyConstraint(["generation_id"], ["generation.id"], name="fk_lane_generation_id_generation"),
    )


def downgrade() -> None:
    op.drop_table("lane")
    op.drop_index("ix_generation_run_feature_created_at", "generation")
    op.drop_index("ix_generation_fingerprint_created_at", "generation")
    op.drop_table("generation")
