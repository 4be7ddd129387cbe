//! Text-to-image endpoints of v1 and v2beta.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{Shared, output};
use crate::api_error::ApiError;
use crate::faults::{Fault, Target};
use crate::ledger::RequestRecord;
use crate::rules::{self, ImageRequest};

/// Counts a request as in flight until it is dropped, which also happens when the caller disconnects.
pub(super) struct InFlightGuard {
    shared: Arc<Shared>,
    log_index: usize,
}

impl InFlightGuard {
    pub(super) fn begin(shared: Arc<Shared>) -> Self {
        let log_index = {
            let mut state = shared.lock();
            state.request_log.push(RequestRecord { received_at: Instant::now(), status: None });
            let ledger = &mut state.ledger;
            ledger.requests += 1;
            ledger.in_flight += 1;
            ledger.max_in_flight = ledger.max_in_flight.max(ledger.in_flight);
            state.request_log.len() - 1
        };
        Self { shared, log_index }
    }

    /// Records the status of the response.
    pub(super) fn record_response(self, response: Response) -> Response {
        let status = response.status().as_u16();
        let mut state = self.shared.lock();
        *state.ledger.by_status.entry(status).or_default() += 1;
        state.request_log[self.log_index].status = Some(status);
        drop(state);
        response
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.shared.lock().ledger.in_flight -= 1;
    }
}

pub(super) async fn v1(
    State(shared): State<Arc<Shared>>,
    Path(engine): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let in_flight = InFlightGuard::begin(shared.clone());
    let result = handle_v1(&shared, &engine, &headers, body).await;
    in_flight.record_response(result.unwrap_or_else(IntoResponse::into_response))
}

pub(super) async fn v2beta(
    State(shared): State<Arc<Shared>>,
    Path(service): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let in_flight = InFlightGuard::begin(shared.clone());
    let result = handle_v2beta(&shared, &service, &headers, request).await;
    in_flight.record_response(result.unwrap_or_else(ApiError::into_v2beta))
}

/// Checks the key, then the rate limit, which is the order of a gateway.
pub(super) fn check_access(shared: &Shared, headers: &HeaderMap) -> Result<(), ApiError> {
    shared.check_key(headers)?;
    if shared.lock().limiter.admit(Instant::now()) { Ok(()) } else { Err(ApiError::from_status(429)) }
}

async fn handle_v1(
    shared: &Arc<Shared>,
    engine: &str,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    check_access(shared, headers)?;
    let body = body.map_err(|rejected| ApiError::from_status(rejected.status().as_u16()))?;
    let wants_image = match headers.get(header::ACCEPT).map(HeaderValue::as_bytes) {
        None | Some(b"application/json" | b"*/*") => false,
        Some(b"image/png") => true,
        Some(_) => return Err(ApiError::new(400, "bad_request", "accept: must be application/json or image/png")),
    };
    let request = rules::v1::parse(engine, &body)?;
    if wants_image && request.samples > 1 {
        return Err(ApiError::new(400, "invalid_samples", "samples: must be 1 where an image is asked for"));
    }
    let generated = generate_images(shared, request).await?;
    let response = if wants_image {
        generated.image_response()
    } else {
        let reason = generated.finish_reason();
        let artifact = |(seed, bytes): &(u32, Vec<u8>)| json!({"base64": STANDARD.encode(bytes), "seed": seed, "finishReason": reason});
        let artifacts: Vec<_> = generated.images.iter().map(artifact).collect();
        Json(json!({"artifacts": artifacts})).into_response()
    };
    Ok(output::apply_response_fault(response, generated.fault).await)
}

async fn handle_v2beta(
    shared: &Arc<Shared>,
    service: &str,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, ApiError> {
    check_access(shared, headers)?;
    let wants_image = wants_image_file(headers)?;
    let fields = read_form(request).await?;
    let text = |(name, value): (String, Vec<u8>)| (name, String::from_utf8_lossy(&value).into_owned());
    let fields: Vec<_> = fields.into_iter().map(text).collect();
    let request = rules::v2beta::parse(service, &fields)?;
    Ok(generate_images(shared, request).await?.into_v2beta(wants_image).await)
}

/// Whether a v2beta request asks for an image file; otherwise for JSON.
pub(super) fn wants_image_file(headers: &HeaderMap) -> Result<bool, ApiError> {
    match headers.get(header::ACCEPT).map(HeaderValue::as_bytes) {
        None | Some(b"image/*" | b"*/*") => Ok(true),
        Some(b"application/json") => Ok(false),
        Some(_) => Err(ApiError::new(400, "bad_request", "accept: must be image/* or application/json")),
    }
}

/// Reads the fields of a multipart form, in their order.
pub(super) async fn read_form(request: Request) -> Result<Vec<(String, Vec<u8>)>, ApiError> {
    let form = Multipart::from_request(request, &()).await;
    let mut form = form.map_err(|_| ApiError::new(400, "bad_request", "content-type: must be multipart/form-data"))?;
    let broken = |status| ApiError::from_status(status);
    let mut fields = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|error| broken(error.status().as_u16()))? {
        let name = field.name().unwrap_or_default().to_owned();
        fields.push((name, field.bytes().await.map_err(|error| broken(error.status().as_u16()))?.to_vec()));
    }
    Ok(fields)
}

/// Rendered images, and the fault that applies to them.
pub(super) struct GeneratedImages {
    /// Each with its seed.
    pub(super) images: Vec<(u32, Vec<u8>)>,
    pub(super) media_type: &'static str,
    pub(super) fault: Option<Fault>,
}

impl GeneratedImages {
    fn first(&self) -> (u32, &[u8]) {
        self.images.first().map_or((0, &[][..]), |(seed, bytes)| (*seed, bytes))
    }

    fn finish_reason(&self) -> &'static str {
        match self.fault {
            Some(Fault::Filtered) => "CONTENT_FILTERED",
            Some(Fault::Error) => "ERROR",
            _ => "SUCCESS",
        }
    }

    /// The response of a v2beta service.
    pub(super) async fn into_v2beta(self, wants_image: bool) -> Response {
        let response = if wants_image {
            self.image_response()
        } else {
            let (seed, bytes) = self.first();
            let body = json!({"image": STANDARD.encode(bytes), "seed": seed, "finish_reason": self.finish_reason()});
            Json(body).into_response()
        };
        output::apply_response_fault(response, self.fault).await
    }

    fn image_response(&self) -> Response {
        let (seed, bytes) = self.first();
        let headers = [
            (header::CONTENT_TYPE.as_str(), self.media_type.to_owned()),
            ("finish-reason", self.finish_reason().to_owned()),
            ("seed", seed.to_string()),
        ];
        (headers, bytes.to_vec()).into_response()
    }
}

/// Charges for the request and renders its images, unless a status fault rejects it.
async fn generate_images(shared: &Arc<Shared>, request: ImageRequest) -> Result<GeneratedImages, ApiError> {
    let (fault, latency, sketch, prepared) = {
        let mut state = shared.lock();
        state.ledger.by_prompt.entry(request.prompt.clone()).or_default().requests += 1;
        let fault = state
            .faults
            .next_fault(Target::Generation, &request.prompt)
            .map_err(|message| ApiError::new(400, "bad_request", message))?;
        (fault, state.latency, state.sketch, state.prepared_images.clone())
    };
    if let Some(Fault::Status(status, retry_after_s)) = fault {
        return Err(ApiError { retry_after_s, ..ApiError::from_status(status) });
    }
    charge(shared, &request)?;
    tokio::time::sleep(latency + fault.map_or(Duration::ZERO, Fault::delay)).await;
    let first =
        if request.seed == 0 { shared.next_seed.fetch_add(7_919, Ordering::Relaxed).max(1) } else { request.seed };
    let media_type = request.format.media_type();
    if !prepared.is_empty() && fault.is_none() {
        let images = (0..request.samples).map(|sample| {
            let seed = first.wrapping_add(sample);
            (seed, prepared[seed as usize % prepared.len()].to_vec())
        });
        return Ok(GeneratedImages { images: images.collect(), media_type, fault });
    }
    let painting = spawn_blocking(move || {
        let seeds = (0..request.samples).map(|sample| first.wrapping_add(sample));
        seeds.map(|seed| (seed, output::render_image(&request, seed, fault, sketch))).collect()
    });
    Ok(GeneratedImages { images: painting.await.unwrap_or_default(), media_type, fault })
}

fn charge(shared: &Shared, order: &ImageRequest) -> Result<(), ApiError> {
    let mut state = shared.lock();
    let price = order.credits * f64::from(order.samples);
    if state.credits < price {
        return Err(ApiError::from_status(402));
    }
    state.credits -= price;
    state.ledger.charged += order.samples;
    if let Some(counts) = state.ledger.by_prompt.get_mut(&order.prompt) {
        counts.charged += order.samples;
    }
    Ok(())
}
