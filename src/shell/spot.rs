//! Notices of a cloud that it will take this machine away, asked for at its metadata service.
//!
//! A notice is the wish to end, as SIGTERM is: what can be finished is, the rest is saved and given back. When no more can
//! be done within the grace period is the scheduler's business. A metadata service that does not answer ends nothing.
//!
//! EC2: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>, two minutes before.
//! Google: <https://cloud.google.com/compute/docs/instances/spot>, thirty seconds before.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use tokio_util::sync::CancellationToken;

/// Between two questions; the clouds advise five seconds.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The service is on the machine's own link.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// For how long EC2's token is good.
const TOKEN_S: &str = "300";
/// Set by tests and by those who have the service elsewhere.
const EC2_ENDPOINT_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const GCP_HOST_VARIABLE: &str = "GCE_METADATA_HOST";

/// Who gives notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpotNotices {
    /// Nobody.
    Off,
    /// Amazon's instance metadata service, version 2.
    Ec2,
    /// Google's metadata server.
    Gcp,
}

/// A name that no cloud has here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be off, ec2 or gcp")]
pub struct UnknownNotices;

impl FromStr for SpotNotices {
    type Err = UnknownNotices;

    fn from_str(text: &str) -> Result<Self, UnknownNotices> {
        match text {
            "off" => Ok(Self::Off),
            "ec2" => Ok(Self::Ec2),
            "gcp" => Ok(Self::Gcp),
            _ => Err(UnknownNotices),
        }
    }
}

impl fmt::Display for SpotNotices {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Off => "off",
            Self::Ec2 => "ec2",
            Self::Gcp => "gcp",
        })
    }
}

/// Asks until there is a notice, and then ends the process as SIGTERM would.
///
/// # Errors
/// When no HTTP client can be made.
pub fn watch(notices: SpotNotices, stop: CancellationToken) -> Result<(), reqwest::Error> {
    if notices == SpotNotices::Off {
        return Ok(());
    }
    // Never by a proxy: the address is the machine's own.
    let client = Client::builder().timeout(ANSWER_WITHIN).no_proxy().build()?;
    tokio::spawn(async move {
        let mut is_failing = false;
        loop {
            let asked = match notices {
                SpotNotices::Off => return,
                SpotNotices::Ec2 => ask_ec2(&client).await,
                SpotNotices::Gcp => ask_gcp(&client).await,
            };
            match asked {
                Ok(Some(notice)) => {
                    tracing::warn!(notice, "spot.notice: this machine will be taken away");
                    stop.cancel();
                    return;
                }
                Ok(None) => is_failing = false,
                // Once for each time that it begins to fail.
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "spot.notice: the metadata service does not answer");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
        }
    });
    Ok(())
}

fn variable(name: &str, otherwise: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| otherwise.to_owned())
}

async fn ask_ec2(client: &Client) -> Result<Option<String>, reqwest::Error> {
    let service = variable(EC2_ENDPOINT_VARIABLE, "http://169.254.169.254");
    let service = service.trim_end_matches('/');
    let token = client.put(format!("{service}/latest/api/token"));
    let token = token.header("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_S).send().await?.error_for_status()?;
    let question = client.get(format!("{service}/latest/meta-data/spot/instance-action"));
    let answer = question.header("X-aws-ec2-metadata-token", token.text().await?).send().await?;
    // There is nothing as long as there is no notice.
    if answer.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    answer.error_for_status()?.text().await.map(Some)
}

async fn ask_gcp(client: &Client) -> Result<Option<String>, reqwest::Error> {
    let host = variable(GCP_HOST_VARIABLE, "metadata.google.internal");
    let question = client.get(format!("http://{host}/computeMetadata/v1/instance/preempted"));
    let answer = question.header("Metadata-Flavor", "Google").send().await?.error_for_status()?.text().await?;
    Ok((answer.trim() == "TRUE").then_some(answer))
}
