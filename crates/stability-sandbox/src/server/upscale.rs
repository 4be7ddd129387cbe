//! The fast upscaler of v2beta.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::task::spawn_blocking;

use super::generate::{GeneratedImages, InFlightGuard, check_access, read_form, wants_image_file};
use super::{Shared, output};
use crate::api_error::ApiError;
use crate::faults::{Fault, Target};
use crate::rules::upscale::{CREDITS, UpscaleRequest, parse};

pub(super) async fn fast(State(shared): State<Arc<Shared>>, headers: HeaderMap, request: Request) -> Response {
    let in_flight = InFlightGuard::begin(shared.clone());
    let result = handle(&shared, &headers, request).await;
    in_flight.record_response(result.unwrap_or_else(ApiError::into_v2beta))
}

async fn handle(shared: &Arc<Shared>, headers: &HeaderMap, request: Request) -> Result<Response, ApiError> {
    check_access(shared, headers)?;
    let wants_image = wants_image_file(headers)?;
    let receiving = Receiving { shared, is_complete: false };
    let request = receiving.receive(request).await?;
    Ok(upscale(shared, request).await?.into_v2beta(wants_image).await)
}

/// Counts an upload that fails or is dropped, because the caller disconnects, before its prompt is known.
struct Receiving<'a> {
    shared: &'a Shared,
    is_complete: bool,
}

impl Receiving<'_> {
    async fn receive(mut self, request: Request) -> Result<UpscaleRequest, ApiError> {
        let fields = read_form(request).await?;
        let request = spawn_blocking(move || parse(&fields)).await.map_err(|_| ApiError::from_status(500))?;
        self.is_complete = true;
        request
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.shared.lock().ledger.incomplete += u32::from(!self.is_complete);
    }
}

/// Charges for the request and upscales its image, unless a status fault rejects it.
async fn upscale(shared: &Arc<Shared>, request: UpscaleRequest) -> Result<GeneratedImages, ApiError> {
    let (fault, latency) = charge(shared, &request.prompt)?;
    tokio::time::sleep(latency + fault.map_or(Duration::ZERO, Fault::delay)).await;
    let media_type = request.format.media_type();
    let file = spawn_blocking(move || output::render_upscaled(&request, fault)).await;
    Ok(GeneratedImages { images: vec![(0, file.unwrap_or_default())], media_type, fault })
}

fn charge(shared: &Shared, prompt: &str) -> Result<(Option<Fault>, Duration), ApiError> {
    let mut state = shared.lock();
    state.ledger.by_prompt.entry(prompt.to_owned()).or_default().upscale_requests += 1;
    let fault = state.faults.next_fault(Target::Upscale, prompt);
    let fault = fault.map_err(|message| ApiError::new(400, "bad_request", message))?;
    if let Some(Fault::Status(status, retry_after_s)) = fault {
        return Err(ApiError { retry_after_s, ..ApiError::from_status(status) });
    }
    if state.credits < CREDITS {
        return Err(ApiError::from_status(402));
    }
    state.credits -= CREDITS;
    state.ledger.upscaled += 1;
    state.ledger.by_prompt.entry(prompt.to_owned()).or_default().upscaled += 1;
    Ok((fault, state.latency))
}
