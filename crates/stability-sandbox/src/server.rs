//! The HTTP side: v1 text-to-image, balance, engines, and the control endpoints below `/_sandbox`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::faults::{Fault, FaultOrder, Faults};
use crate::ledger::Ledger;
use crate::limiter::Limiter;
use crate::reply::Refusal;
use crate::rules::{self, Order};
use crate::{Settings, paint};

/// A running sandbox; it stops when this is dropped.
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    settings: Settings,
    state: Mutex<Inner>,
    seeds: AtomicU32,
}

struct Inner {
    ledger: Ledger,
    faults: Faults,
    limiter: Limiter,
    credits: f64,
    latency: Duration,
}

impl Inner {
    fn new(settings: &Settings) -> Self {
        Self {
            ledger: Ledger::default(),
            faults: Faults::default(),
            limiter: Limiter::new(settings.limit, settings.window, settings.lockout),
            credits: settings.credits,
            latency: settings.latency,
        }
    }
}

impl Sandbox {
    /// Starts a sandbox in the background of this runtime.
    ///
    /// # Errors
    ///
    /// Where it cannot listen on the address.
    #[expect(clippy::disallowed_methods, reason = "the task is kept, and ended when the sandbox is dropped")]
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let state = Mutex::new(Inner::new(&settings));
        let shared = Arc::new(Shared { settings, state, seeds: AtomicU32::new(1) });
        let router = router(shared.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the sandbox stopped");
            }
        });
        Ok(Self { address, shared, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL that a client is given.
    pub fn base_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What it was asked so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.lock().ledger.clone()
    }

    /// Lets requests meet a fault.
    ///
    /// # Errors
    ///
    /// A sentence, where the fault is not known.
    pub fn order(&self, order: FaultOrder) -> Result<(), String> {
        self.shared.lock().faults.order(order)
    }

    /// Lets every request be well again, but for the faults in prompts.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Sets how long painting takes at least.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.lock().latency = latency;
    }

    /// Sets the account's credits.
    pub fn set_credits(&self, credits: f64) {
        self.shared.lock().credits = credits;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The key must be one of the account's.
    fn check_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let key = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match key {
            Some(key) if self.settings.keys.iter().any(|known| known == key) => Ok(()),
            _ => Err(Refusal::of_status(401)),
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/generation/{engine}/text-to-image", post(text_to_image))
        .route("/v1/user/balance", get(balance))
        .route("/v1/engines/list", get(engines))
        .route("/_sandbox/ledger", get(ledger))
        .route("/_sandbox/faults", post(order_fault).delete(clear_faults))
        .fallback(|| async { Refusal::new(404, "not_found", "no such path") })
        .method_not_allowed_fallback(|| async { Refusal::of_status(405) })
        .layer(DefaultBodyLimit::max(1024 * 1024))
        .with_state(shared)
}

async fn balance(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Response, Refusal> {
    shared.check_key(&headers)?;
    let credits = shared.lock().credits;
    Ok(Json(json!({"credits": credits})).into_response())
}

async fn engines(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Response, Refusal> {
    shared.check_key(&headers)?;
    let engine = |id: &str, name: &str| json!({"id": id, "name": name, "description": name, "type": "PICTURE"});
    Ok(Json(json!([engine(rules::SDXL, "Stable Diffusion XL v1.0"), engine(rules::SD16, "Stable Diffusion v1.6"),]))
        .into_response())
}

async fn ledger(State(shared): State<Arc<Shared>>) -> Json<Ledger> {
    Json(shared.lock().ledger.clone())
}

async fn order_fault(State(shared): State<Arc<Shared>>, Json(order): Json<FaultOrder>) -> Result<StatusCode, Refusal> {
    let ordered = shared.lock().faults.order(order);
    ordered.map(|()| StatusCode::NO_CONTENT).map_err(|message| Refusal::new(400, "bad_request", message))
}

async fn clear_faults(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.lock().faults.clear();
    StatusCode::NO_CONTENT
}

/// Counts a request in flight until it is dropped, which is also when the caller hangs up.
struct InFlight(Arc<Shared>);

impl InFlight {
    fn enter(shared: Arc<Shared>) -> Self {
        {
            let ledger = &mut shared.lock().ledger;
            ledger.requests += 1;
            ledger.in_flight += 1;
            ledger.max_in_flight = ledger.max_in_flight.max(ledger.in_flight);
        }
        Self(shared)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.lock().ledger.in_flight -= 1;
    }
}

async fn text_to_image(
    State(shared): State<Arc<Shared>>,
    Path(engine): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let in_flight = InFlight::enter(shared.clone());
    let answered = match body {
        Ok(body) => answer(&shared, &engine, &headers, &body).await,
        Err(rejected) => Err(Refusal::of_status(rejected.status().as_u16())),
    };
    let response = match answered {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    *shared.lock().ledger.by_status.entry(response.status().as_u16()).or_default() += 1;
    drop(in_flight);
    response
}

/// The first checks, in the order a gateway makes them: key, quota, request, credits.
async fn answer(shared: &Arc<Shared>, engine: &str, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refusal> {
    shared.check_key(headers)?;
    if !shared.lock().limiter.admit(Instant::now()) {
        return Err(Refusal::of_status(429));
    }
    let as_png = match headers.get(header::ACCEPT).map(HeaderValue::as_bytes) {
        None | Some(b"application/json" | b"*/*") => false,
        Some(b"image/png") => true,
        Some(_) => return Err(Refusal::new(400, "bad_request", "accept: must be application/json or image/png")),
    };
    let order = rules::check(engine, body)?;
    if as_png && order.samples > 1 {
        return Err(Refusal::new(400, "invalid_samples", "samples: must be 1 where an image is asked for"));
    }
    let (fault, latency) = {
        let mut state = shared.lock();
        state.ledger.by_prompt.entry(order.prompt.clone()).or_default().requests += 1;
        let fault = state.faults.next(&order.prompt).map_err(|message| Refusal::new(400, "bad_request", message))?;
        (fault, state.latency)
    };
    if let Some(Fault::Status(status, retry_after_s)) = fault {
        return Err(Refusal { retry_after_s, ..Refusal::of_status(status) });
    }
    charge(shared, &order)?;
    tokio::time::sleep(latency + fault.map_or(Duration::ZERO, Fault::delay)).await;
    Ok(painted(shared, order, fault, as_png).await)
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

/// Paints what was ordered, or what the fault makes of it.
async fn painted(shared: &Shared, order: Order, fault: Option<Fault>, as_png: bool) -> Response {
    let first_seed = if order.seed == 0 { shared.seeds.fetch_add(7_919, Ordering::Relaxed).max(1) } else { order.seed };
    let count = order.samples;
    let pictures = spawn_blocking(move || {
        (0..count)
            .map(|sample| {
                let seed = first_seed.wrapping_add(sample);
                (seed, picture(&order, seed, fault))
            })
            .collect::<Vec<_>>()
    })
    .await
    .unwrap_or_default();
    let finish_reason = match fault {
        Some(Fault::Filtered) => "CONTENT_FILTERED",
        Some(Fault::Error) => "ERROR",
        _ => "SUCCESS",
    };
    if as_png {
        let (seed, bytes) = pictures.into_iter().next().unwrap_or_default();
        let headers = [
            (header::CONTENT_TYPE.as_str(), "image/png".to_owned()),
            ("finish-reason", finish_reason.to_owned()),
            ("seed", seed.to_string()),
        ];
        return broken((headers, bytes).into_response(), fault).await;
    }
    let artifacts: Vec<_> = pictures
        .iter()
        .map(|(seed, bytes)| json!({"base64": STANDARD.encode(bytes), "seed": seed, "finishReason": finish_reason}))
        .collect();
    broken(Json(json!({"artifacts": artifacts})).into_response(), fault).await
}

fn picture(order: &Order, seed: u32, fault: Option<Fault>) -> Vec<u8> {
    match fault {
        Some(Fault::Filtered) => paint::blurred(&order.prompt, seed, order.width, order.height),
        Some(Fault::WrongSize) => paint::picture(&order.prompt, seed, 512, 512),
        Some(Fault::Blank) => paint::blank(order.width, order.height),
        Some(Fault::Bomb) => bomb(),
        Some(Fault::Corrupt) => {
            let mut bytes = paint::picture(&order.prompt, seed, order.width, order.height);
            let middle = bytes.len() / 2;
            bytes.truncate(middle);
            bytes
        }
        _ => paint::picture(&order.prompt, seed, order.width, order.height),
    }
}

/// A PNG whose header promises 30000x30000 pixels.
fn bomb() -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 30_000, 30_000);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let writer = encoder.write_header().expect("writing to memory");
    drop(writer);
    file
}

/// Breaks a good answer on its way.
async fn broken(response: Response, fault: Option<Fault>) -> Response {
    match fault {
        Some(Fault::Oversized) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], vec![b' '; 40 * 1024 * 1024]).into_response()
        }
        Some(Fault::Html) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "text/html")], "<html><body>please wait</body></html>")
                .into_response()
        }
        Some(Fault::Empty) => StatusCode::OK.into_response(),
        Some(Fault::Truncated) => {
            let (parts, body) = response.into_parts();
            let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            Response::from_parts(parts, Body::from(bytes.slice(..bytes.len() / 2)))
        }
        Some(Fault::Drop) => Response::new(Body::from_stream(cut_off())),
        _ => response,
    }
}

/// A body that breaks after its first bytes, and the connection with it.
fn cut_off() -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> {
    futures_util::stream::iter([
        Ok(Bytes::from_static(b"{\"artifacts\": [{\"base64\": \"iVBORw0KGgo")),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ])
}
