//! Text-to-image, of both APIs.

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

use super::{Shared, artwork};
use crate::faults::Fault;
use crate::ledger::Arrival;
use crate::reply::Refusal;
use crate::rules::{self, Order};

/// Counts a request in flight until it is dropped, which is also when the caller hangs up.
struct InFlight {
    shared: Arc<Shared>,
    /// Its place among all arrivals.
    number: usize,
}

impl InFlight {
    fn enter(shared: Arc<Shared>) -> Self {
        let number = {
            let mut state = shared.lock();
            state.arrivals.push(Arrival { at: Instant::now(), status: None });
            let ledger = &mut state.ledger;
            ledger.requests += 1;
            ledger.in_flight += 1;
            ledger.max_in_flight = ledger.max_in_flight.max(ledger.in_flight);
            state.arrivals.len() - 1
        };
        Self { shared, number }
    }

    /// Notes what it is answered with.
    fn answered(self, response: Response) -> Response {
        let status = response.status().as_u16();
        let mut state = self.shared.lock();
        *state.ledger.by_status.entry(status).or_default() += 1;
        state.arrivals[self.number].status = Some(status);
        drop(state);
        response
    }
}

impl Drop for InFlight {
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
    let in_flight = InFlight::enter(shared.clone());
    let answered = answer_v1(&shared, &engine, &headers, body).await;
    in_flight.answered(answered.unwrap_or_else(IntoResponse::into_response))
}

pub(super) async fn v2beta(
    State(shared): State<Arc<Shared>>,
    Path(service): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let in_flight = InFlight::enter(shared.clone());
    let answered = answer_v2beta(&shared, &service, &headers, request).await;
    in_flight.answered(answered.unwrap_or_else(Refusal::into_v2beta))
}

/// The first checks, in the order a gateway makes them: key, quota.
fn admitted(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    shared.check_key(headers)?;
    if shared.lock().limiter.admit(Instant::now()) { Ok(()) } else { Err(Refusal::of_status(429)) }
}

async fn answer_v1(
    shared: &Arc<Shared>,
    engine: &str,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    admitted(shared, headers)?;
    let body = body.map_err(|rejected| Refusal::of_status(rejected.status().as_u16()))?;
    let as_image = match headers.get(header::ACCEPT).map(HeaderValue::as_bytes) {
        None | Some(b"application/json" | b"*/*") => false,
        Some(b"image/png") => true,
        Some(_) => return Err(Refusal::new(400, "bad_request", "accept: must be application/json or image/png")),
    };
    let order = rules::v1::check(engine, &body)?;
    if as_image && order.samples > 1 {
        return Err(Refusal::new(400, "invalid_samples", "samples: must be 1 where an image is asked for"));
    }
    let made = made(shared, order).await?;
    let response = if as_image {
        made.as_image()
    } else {
        let reason = made.finish_reason();
        let artifact = |(seed, bytes): &(u32, Vec<u8>)| json!({"base64": STANDARD.encode(bytes), "seed": seed, "finishReason": reason});
        let artifacts: Vec<_> = made.pictures.iter().map(artifact).collect();
        Json(json!({"artifacts": artifacts})).into_response()
    };
    Ok(artwork::broken(response, made.fault).await)
}

async fn answer_v2beta(
    shared: &Arc<Shared>,
    service: &str,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Refusal> {
    admitted(shared, headers)?;
    let as_image = match headers.get(header::ACCEPT).map(HeaderValue::as_bytes) {
        None | Some(b"image/*" | b"*/*") => true,
        Some(b"application/json") => false,
        Some(_) => return Err(Refusal::new(400, "bad_request", "accept: must be image/* or application/json")),
    };
    let form = Multipart::from_request(request, &()).await;
    let form = form.map_err(|_| Refusal::new(400, "bad_request", "content-type: must be multipart/form-data"))?;
    let order = rules::v2beta::check(service, &fields(form).await?)?;
    let made = made(shared, order).await?;
    let response = if as_image {
        made.as_image()
    } else {
        let (seed, bytes) = made.first();
        let body = json!({"image": STANDARD.encode(bytes), "seed": seed, "finish_reason": made.finish_reason()});
        Json(body).into_response()
    };
    Ok(artwork::broken(response, made.fault).await)
}

/// The fields of a form, in their order.
async fn fields(mut form: Multipart) -> Result<Vec<(String, String)>, Refusal> {
    let broken = |status| Refusal::of_status(status);
    let mut fields = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|error| broken(error.status().as_u16()))? {
        let name = field.name().unwrap_or_default().to_owned();
        fields.push((name, field.text().await.map_err(|error| broken(error.status().as_u16()))?));
    }
    Ok(fields)
}

/// Pictures that were painted, and the fault that they met.
struct Made {
    pictures: Vec<(u32, Vec<u8>)>,
    media_type: &'static str,
    fault: Option<Fault>,
}

impl Made {
    fn first(&self) -> (u32, &[u8]) {
        self.pictures.first().map_or((0, &[][..]), |(seed, bytes)| (*seed, bytes))
    }

    fn finish_reason(&self) -> &'static str {
        match self.fault {
            Some(Fault::Filtered) => "CONTENT_FILTERED",
            Some(Fault::Error) => "ERROR",
            _ => "SUCCESS",
        }
    }

    fn as_image(&self) -> Response {
        let (seed, bytes) = self.first();
        let headers = [
            (header::CONTENT_TYPE.as_str(), self.media_type.to_owned()),
            ("finish-reason", self.finish_reason().to_owned()),
            ("seed", seed.to_string()),
        ];
        (headers, bytes.to_vec()).into_response()
    }
}

/// Charges and paints an order, unless a fault comes first.
async fn made(shared: &Arc<Shared>, order: Order) -> Result<Made, Refusal> {
    let (fault, latency, sketch) = {
        let mut state = shared.lock();
        state.ledger.by_prompt.entry(order.prompt.clone()).or_default().requests += 1;
        let fault = state.faults.next(&order.prompt).map_err(|message| Refusal::new(400, "bad_request", message))?;
        (fault, state.latency, state.sketch)
    };
    if let Some(Fault::Status(status, retry_after_s)) = fault {
        return Err(Refusal { retry_after_s, ..Refusal::of_status(status) });
    }
    charge(shared, &order)?;
    tokio::time::sleep(latency + fault.map_or(Duration::ZERO, Fault::delay)).await;
    let first = if order.seed == 0 { shared.seeds.fetch_add(7_919, Ordering::Relaxed).max(1) } else { order.seed };
    let media_type = order.format.media_type();
    let painting = spawn_blocking(move || {
        let seeds = (0..order.samples).map(|sample| first.wrapping_add(sample));
        seeds.map(|seed| (seed, artwork::picture(&order, seed, fault, sketch))).collect()
    });
    Ok(Made { pictures: painting.await.unwrap_or_default(), media_type, fault })
}

fn charge(shared: &Shared, order: &Order) -> Result<(), Refusal> {
    let mut state = shared.lock();
    let price = shared.settings.credits_per_picture * f64::from(order.samples);
    if state.credits < price {
        return Err(Refusal::of_status(402));
    }
    state.credits -= price;
    state.ledger.charged += order.samples;
    if let Some(asked) = state.ledger.by_prompt.get_mut(&order.prompt) {
        asked.charged += order.samples;
    }
    Ok(())
}
