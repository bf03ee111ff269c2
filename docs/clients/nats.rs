//! Jobs over NATS: one that is followed to its image, one that is cancelled while it runs.
//!
//! ```text
//! cargo add async-nats@0.51 futures-util@0.3 serde_json@1 && cargo add tokio@1 -F full && cargo add uuid@1 -F v4
//! cargo run -- [IMAGE.png]
//! ```

#![allow(clippy::print_stdout, reason = "a program for people")]

use async_nats::{Client, Error, HeaderMap, Message, jetstream};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let servers = variable("NATS_URL", "nats://127.0.0.1:4222");
    let tenant = variable("DARKROOM_TENANT", "default");
    let path = std::env::args().nth(1).unwrap_or_else(|| "image.png".to_owned());
    let client = async_nats::connect(servers.split(',').collect::<Vec<_>>()).await?;
    draw(&client, &tenant, &path).await?;
    take_back(&client, &tenant).await
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

async fn draw(client: &Client, tenant: &str, path: &str) -> Result<(), Error> {
    let job = format!("circle-{}", uuid::Uuid::new_v4());
    let mut events = follow(client, tenant, &job).await?;
    let request = json!({"prompt": "a red circle on a blue background", "seed": 7});
    submit(client, tenant, &job, &request).await?;
    submit(client, tenant, &job, &request).await?;
    while let Some((kind, data)) = events.next().await {
        match kind.as_str() {
            "progress" => println!("progress: step {} of {}", data["step"], data["steps"]),
            "failed" | "cancelled" => return Err(format!("{kind}: {data}").into()),
            "completed" => {
                // A link to the store: signed where it can sign, a file where the store is a folder, as in local/up.
                let url = data["images"][0]["url"].as_str().ok_or("no image")?;
                let file = url.strip_prefix("file://").ok_or_else(|| format!("the image is at {url}"))?;
                println!("completed\n{path} {} bytes", std::fs::copy(file, path)?);
                return Ok(());
            }
            _ => println!("{kind}"),
        }
    }
    Err("the connection was lost for good".into())
}

async fn take_back(client: &Client, tenant: &str) -> Result<(), Error> {
    let job = format!("star-{}", uuid::Uuid::new_v4());
    let mut events = follow(client, tenant, &job).await?;
    let request = json!({"prompt": "a green star", "num_inference_steps": 100, "num_images": 8});
    submit(client, tenant, &job, &request).await?;
    while let Some((kind, data)) = events.next().await {
        match kind.as_str() {
            "started" => {
                let wish = json!({ "job": job }).to_string();
                let answer = client.request(format!("darkroom.api.cancel.{tenant}"), wish.into()).await?;
                let answer: Value = serde_json::from_slice(&answer.payload)?;
                println!("started\nasked to cancel: {}", answer["outcome"]);
            }
            "completed" | "failed" => return Err(format!("{kind}: {data}").into()),
            "cancelled" => {
                println!("cancelled");
                return Ok(());
            }
            _ => {}
        }
    }
    Err("the connection was lost for good".into())
}

/// Publishes a request; it is safe once the stream has confirmed it. Sent again with its id, it is the same job.
async fn submit(client: &Client, tenant: &str, job: &str, request: &Value) -> Result<(), Error> {
    let subject = format!("darkroom.req.shapes.normal.any.{tenant}");
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", job);
    let context = jetstream::new(client.clone());
    let confirmed = context.publish_with_headers(subject, headers, request.to_string().into()).await?.await?;
    println!("job {job}: {}", if confirmed.duplicate { "known already" } else { "submitted" });
    Ok(())
}

/// The job's events from now on: kind and data.
async fn follow(client: &Client, tenant: &str, job: &str) -> Result<BoxStream<'static, (String, Value)>, Error> {
    let events = client.subscribe(format!("darkroom.ev.{tenant}.{job}.>")).await?;
    let progress = client.subscribe(format!("darkroom.prog.{tenant}.{job}")).await?;
    let read = |message: Message| {
        let mut event: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or_default().trim_start_matches("darkroom.job.").to_owned();
        (kind, event["data"].take())
    };
    Ok(stream::select(events, progress).map(read).boxed())
}
