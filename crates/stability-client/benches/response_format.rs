//! Compares the client's time per call for binary images and for base64 in JSON. `make bench` runs it.
//!
//! A server on loopback returns the same prepared image in both formats, so that the measured time is that of the
//! client: sending the request, reading and decoding the response. The formats alternate, so that noise on the machine
//! affects both and the ratio stays comparable.
#![expect(clippy::print_stdout, reason = "the benchmark prints its results")]

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stability_client::{Client, Engine, ResponseFormat, TextToImage};
use stability_sandbox::{Sandbox, Settings};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const ROUNDS: usize = 200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sandbox = Sandbox::start(Settings::default()).await?;
    let engine = Engine::Sdxl10;
    let request = TextToImage::new(engine, engine.dimensions_for(1920, 1080), "A lighthouse at dusk")?;
    let picture =
        build_client(&sandbox.base_url(), ResponseFormat::Image)?.generate(&request).await?.into_first().bytes;
    let json =
        format!(r#"{{"artifacts":[{{"base64":"{}","seed":7,"finishReason":"SUCCESS"}}]}}"#, STANDARD.encode(&picture));
    println!("binary response: {} bytes; JSON response: {} bytes", picture.len(), json.len());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base_url = format!("http://{}/", listener.local_addr()?);
    let json = Bytes::from(json);
    let handler = move |headers: HeaderMap| {
        let (picture, json) = (picture.clone(), json.clone());
        async move { respond(&headers, picture, json) }
    };
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, Router::new().fallback(post(handler))).await });

    let forms = [ResponseFormat::Image, ResponseFormat::Json];
    let clients = [build_client(&base_url, forms[0])?, build_client(&base_url, forms[1])?];
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for turn in 0..ROUNDS + 20 {
        for (client, times) in clients.iter().zip(&mut times) {
            let start = Instant::now();
            client.generate(&request).await?;
            // The first 20 rounds are the warm-up.
            if turn >= 20 {
                times.push(start.elapsed());
            }
        }
    }
    let [image, json] = times.map(|mut times| {
        times.sort();
        times[ROUNDS / 2]
    });
    println!("median of {ROUNDS} rounds: binary {image:?}, JSON {json:?}");
    println!("JSON / image: {:.2}", json.as_secs_f64() / image.as_secs_f64());
    Ok(())
}

fn build_client(base_url: &str, form: ResponseFormat) -> Result<Client, Box<dyn std::error::Error>> {
    let builder = Client::builder("sk-sandbox").base_url(base_url).response_format(form);
    Ok(builder.rate_limit(NonZeroU32::new(10_000_000).ok_or("not 0")?).build()?)
}

fn respond(headers: &HeaderMap, picture: Bytes, json: Bytes) -> Response {
    if headers.get(header::ACCEPT).is_some_and(|accept| accept == "image/png") {
        let headers = [("content-type", "image/png"), ("finish-reason", "SUCCESS"), ("seed", "7")];
        (headers, picture).into_response()
    } else {
        ([("content-type", "application/json")], json).into_response()
    }
}
