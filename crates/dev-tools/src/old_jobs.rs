//! Ended jobs in a database, as large as real ones.

use anyhow::Result;
use integration_tests::TestEnv;

/// Which jobs to insert into PostgreSQL. The expressions may use `n`, the number of a job from 0.
pub(crate) struct OldJobs<'a> {
    pub(crate) count: u32,
    /// Expression of the project.
    pub(crate) project: &'a str,
    /// Expression of the time of the first claim.
    pub(crate) created_at: &'a str,
    /// Expression of the time of the end.
    pub(crate) finished_at: &'a str,
}

impl OldJobs<'_> {
    /// Inserts the jobs, each with one completed image. Their events are published.
    pub(crate) async fn insert(&self, env: &TestEnv) -> Result<()> {
        let Self { count, project, created_at, finished_at } = self;
        let jobs = format!(
            "INSERT INTO jobs (id, project_id, status, digest, command, style, engine, total, attempts, cost_usd, lease_token, \
             lease_until_ms, lease_losses, terminal_type, terminal_event, published_at, created_at, updated_at, finished_at) \
             SELECT id, {project}, 'completed', repeat('0', 64), \
             json_build_object('job_id', id, 'project_id', {project}, 'image_descriptions', \
             json_build_array(repeat('A fox ', 20)), 'config', json_build_object()), '{{}}', 'core', 1, 0, 0.03, 1, \
             0, 0, 'assets.generation.completed', \
             (SELECT json_build_object('id', id, 'filler', string_agg(md5(n::text || m::text), ''))::text \
             FROM generate_series(1, 30) m), now(), {created_at}, now(), {finished_at} \
             FROM (SELECT n, gen_random_uuid() AS id FROM generate_series(0, {count} - 1) n) numbers"
        );
        env.execute(&jobs).await?;
        env.execute(
            "INSERT INTO assets (id, project_id, job_id, \"index\", type, status, file_path, metadata, fingerprint, format, \
             width, height, size_bytes, sha256, requests, charged, created_at, updated_at) \
             SELECT gen_random_uuid(), project_id, id, 1, 'image', 'completed', \
             'projects/' || project_id || '/assets/image_001-' || id || '.png', \
             json_build_object('description', repeat('A fox ', 20), 'index', 1, 'prompt', repeat('A fox ', 40), 'seed', 1, \
             'negative_prompt', '', 'engine', 'core', 'uri', 'file:///image.png', 'origin', 'generated'), gen_random_uuid(), \
             'png', 1920, 1080, 5, repeat('0', 64), 1, 1, created_at, updated_at FROM jobs",
        )
        .await?;
        env.execute("ANALYZE").await
    }
}
