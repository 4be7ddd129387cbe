//! All pictures of a job as one ZIP file, made while it is sent.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use store::JobDetails;
use tokio::sync::mpsc;
use tracing::warn;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, ZipWriter};

use super::job::read_details;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::problem::{Problem, ProblemCode};
use crate::api::request::{JobId, NoQuery};
use crate::error_chain::error_chain;
use crate::storage::Storage;

/// Sends the pictures of a job, and `job.json` with all that is known of it.
///
/// A picture whose file is gone is left out and named in `missing.txt`. If a file cannot be read to its end, the response
/// breaks off, so that a client does not take the ZIP file for a complete one.
pub(super) async fn download(
    api: Api,
    _visitor: Visitor,
    JobId(job_id): JobId,
    _query: NoQuery,
) -> Result<Response, Problem> {
    let details = read_details(&api, job_id).await?;
    if !details.report.assets.iter().any(|asset| asset.file_path.is_some()) {
        return Err(Problem::new(ProblemCode::WrongState, format!("job {job_id} has no picture yet")));
    }
    let headers = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"images-{job_id}.zip\"")),
    ];
    Ok((headers, Body::from_stream(zip_stream(details, api.storage.clone()))).into_response())
}

/// The ZIP file in pieces. It is made only while the pieces are taken.
fn zip_stream(details: JobDetails, storage: Storage) -> impl Stream<Item = io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(1);
    let making = async move {
        let mut archive = Archive::new(sender);
        if let Err(error) = archive.add_all(&details, &storage).await {
            warn!(job.id = %details.report.job_id, error = error_chain(&error), "a ZIP file breaks off");
            archive.send(Err(error)).await;
        }
    };
    let pieces = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<io::Result<Bytes>>| {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let making = stream::once(making).filter_map(async |()| None::<Infallible>).map(|never| match never {});
    stream::select(pieces, making)
}

/// A ZIP file whose bytes are sent as soon as they are written.
struct Archive {
    writer: ZipWriter<StreamWriter<Buffer>>,
    buffer: Buffer,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Archive {
    fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        let buffer = Buffer::default();
        Self { writer: ZipWriter::new_stream(buffer.clone()), buffer, sender }
    }

    async fn add_all(&mut self, details: &JobDetails, storage: &Storage) -> io::Result<()> {
        let mut missing = String::new();
        for asset in details.report.assets.iter().filter(|asset| asset.status == "completed") {
            let Some(path) = &asset.file_path else { continue };
            match storage.open_file(path).await.map_err(io::Error::other)? {
                None => missing += &format!("{path}\n"),
                Some((_, pieces)) => {
                    // Two jobs of a project have files of different names.
                    self.begin_file(path.rsplit('/').next().unwrap_or(path))?;
                    let mut pieces = std::pin::pin!(pieces);
                    while let Some(piece) = pieces.next().await {
                        self.writer.write_all(&piece?)?;
                        self.send_written().await;
                    }
                }
            }
        }
        let report = serde_json::to_vec_pretty(&details.report).map_err(io::Error::other)?;
        self.begin_file("job.json")?;
        self.writer.write_all(&report)?;
        if !missing.is_empty() {
            self.begin_file("missing.txt")?;
            self.writer.write_all(missing.as_bytes())?;
        }
        let writer = std::mem::replace(&mut self.writer, ZipWriter::new_stream(Buffer::default()));
        writer.finish()?;
        self.send_written().await;
        Ok(())
    }

    /// Begins a file. Pictures are compressed already, so it is stored as it is.
    fn begin_file(&mut self, name: &str) -> io::Result<()> {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        Ok(self.writer.start_file(name, options)?)
    }

    async fn send_written(&self) {
        let written = std::mem::take(&mut *self.buffer.lock());
        self.send(Ok(written.into())).await;
    }

    /// Waits until the client has taken the piece before.
    async fn send(&self, piece: io::Result<Bytes>) {
        // Fails only when the client has gone; then nothing polls this any more.
        let _ = self.sender.send(piece).await;
    }
}

/// What was written and not sent yet. Clones share it.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
