//! The local platform: what a serverless platform does for the functions, on one machine.
//!
//! It runs a nats-server, applies the topology, keeps the always-on functions running, and starts as many `generate`
//! processes as `shell::scaler` says. They end by themselves when idle. It decides nothing about jobs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::job::{Capacity, Fault, ModelManifest};
use crate::wire::subject;

use super::bus::{self, Bus, ConnectError};
use super::config::BusOptions;
use super::scaler::{Scaler, ScalerOptions, Wish};
use super::topology::{self, Mode, Outcome};

/// How often processes are looked at; a published request is seen at once.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a server may take until it answers.
const SERVER_START: Duration = Duration::from_secs(15);
/// How often it is asked whether the gateway listens.
const LISTENS_EVERY: Duration = Duration::from_millis(20);
/// Time that functions get to end before they are killed, and that workers take at the most.
const STOP_GRACE: Duration = Duration::from_secs(25);
const WORKER_GRACE: &str = "20s";
/// What functions would read of the environment although it is meant for another server, or for one of them only.
const OF_OTHERS: [&str; 7] =
    ["NATS_CREDS", "NATS_NKEY", "NATS_CA", "NATS_CERT", "NATS_KEY", "NATS_INBOX_PREFIX", "DARKROOM_METRICS_LISTEN"];
/// A function that ended badly is started again after so long, doubled each time up to a minute.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What the platform is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything that lasts is kept: messages and images.
    pub data: PathBuf,
    /// Port of the NATS client listener; the WebSocket listener has the one above it.
    pub nats_port: u16,
    /// Port of the gateway's HTTP listener.
    pub http_port: u16,
    /// The nats-server program.
    pub nats_server: PathBuf,
    /// Directory of the function programs.
    pub functions: PathBuf,
    /// A `generate` process ends after so long without work.
    pub idle: Duration,
    /// `generate` processes per model at the most.
    pub workers: u32,
    /// How long a request may wait before another process is started for it.
    pub target_wait: Duration,
    /// The models: directory and manifest.
    pub models: Vec<(PathBuf, ModelManifest)>,
}

/// Where things are, once all serves.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// For NATS clients.
    pub nats: String,
    /// For browsers.
    pub websocket: String,
    /// For HTTP clients.
    pub gateway: String,
    /// The images.
    pub store: String,
}

/// Why the platform cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Somebody listens there.
    #[error("port {port} is in use; is another `up` running? choose others with --nats-port and --http-port")]
    PortInUse {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or directory of ours.
    #[error("{path} cannot be used")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program that is not there or not executable.
    #[error("{program} cannot be started")]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server ended while it was needed.
    #[error("the nats-server ended ({status}); its words are above")]
    ServerEnded {
        /// How.
        status: std::process::ExitStatus,
    },
    /// The server does not answer.
    #[error("the nats-server does not answer")]
    Unanswered(#[source] ConnectError),
    /// JetStream refused the topology.
    #[error("the topology cannot be applied")]
    Topology(#[from] bus::ApiError),
    /// The queue cannot be watched.
    #[error("the requests cannot be watched")]
    Scaler(#[from] Fault),
    /// The topology on disk is not what this build needs.
    #[error("the streams in {data} are another build's: {drift}; use another --data")]
    Drift {
        /// Which data.
        data: PathBuf,
        /// What differs.
        drift: String,
    },
}

/// Runs until `stop`, then ends every process it started. `ready` is called once, when all serves.
///
/// # Errors
/// [`SupervisorError`]; no process is left behind.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    ready: impl FnOnce(&Addresses),
) -> Result<(), SupervisorError> {
    let path_error = |path: &Path| {
        let path = path.to_owned();
        move |source| SupervisorError::Path { path, source }
    };
    let websocket_port = config.nats_port.saturating_add(1);
    for port in [config.nats_port, websocket_port, config.http_port] {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        TcpListener::bind(address).map_err(|source| SupervisorError::PortInUse { port, source })?;
    }
    let objects = config.data.join("objects");
    let streams = config.data.join("nats");
    for directory in [&objects, &streams] {
        std::fs::create_dir_all(directory).map_err(path_error(directory))?;
    }
    let objects = objects.canonicalize().map_err(path_error(&objects))?;
    let nats_config = config.data.join("nats.conf");
    std::fs::write(&nats_config, include_str!("../../nats/local.conf")).map_err(path_error(&nats_config))?;
    let addresses = Addresses {
        nats: format!("nats://127.0.0.1:{}", config.nats_port),
        websocket: format!("ws://127.0.0.1:{websocket_port}"),
        gateway: format!("http://127.0.0.1:{}", config.http_port),
        store: Url::from_file_path(&objects).map_or_else(|()| format!("file://{}", objects.display()), Into::into),
    };

    let mut server = Command::new(&config.nats_server);
    server
        .arg("-c")
        .arg(&nats_config)
        .env("DARKROOM_NATS_PORT", config.nats_port.to_string())
        .env("DARKROOM_NATS_WEBSOCKET_PORT", websocket_port.to_string())
        // The server reads the value as a part of its configuration.
        .env("DARKROOM_NATS_STORE", format!("{:?}", streams.display().to_string()));
    let mut server = Process::start(server, &config.nats_server)?;
    let outcome = serve(&config, &addresses, &mut server, &stop, ready).await;
    // Functions are gone by now: the server goes last, so that every acknowledgement was taken.
    server.stop(STOP_GRACE).await;
    outcome
}

async fn serve(
    config: &Config,
    addresses: &Addresses,
    server: &mut Process,
    stop: &CancellationToken,
    ready: impl FnOnce(&Addresses),
) -> Result<(), SupervisorError> {
    let options = BusOptions::open(&addresses.nats);
    let bus = tokio::select! {
        bus = connect(&options) => bus?,
        status = server.ended() => return Err(SupervisorError::ServerEnded { status }),
        () = stop.cancelled() => return Ok(()),
    };
    let manifests: Vec<ModelManifest> = config.models.iter().map(|(_, manifest)| manifest.clone()).collect();
    let findings = topology::reconcile(&bus, &manifests, Mode::Apply).await?;
    let drift: Vec<String> = findings
        .iter()
        .filter_map(|finding| match &finding.outcome {
            Outcome::Drifted(differences) => {
                let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
                Some(format!("{} {}: {}", finding.kind, finding.name, texts.join(", ")))
            }
            Outcome::Unchanged | Outcome::Created | Outcome::Updated(_) => None,
        })
        .collect();
    if !drift.is_empty() {
        return Err(SupervisorError::Drift { data: config.data.clone(), drift: drift.join("; ") });
    }

    let options = ScalerOptions {
        target_wait: config.target_wait,
        provisioning: Duration::ZERO,
        spot_price: 0.0,
        on_demand_price: 0.0,
        interruptions_per_hour: 0.0,
    };
    let scaler = Scaler::start(bus.clone(), options, stop.clone()).await?;
    let mut looks = scaler.looks();
    let mut platform = Platform::new(config, addresses, scaler);
    platform.start_always_on()?;
    let Ok(mut requests) = bus.client.subscribe(subject::ALL_REQUESTS).await else { return Ok(()) };
    let mut ready = Some(ready);
    let gateway = listens(config.http_port);
    tokio::pin!(gateway);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let outcome = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            () = &mut gateway, if ready.is_some() => {
                if let Some(ready) = ready.take() {
                    ready(addresses);
                }
            }
            status = server.ended() => break Err(SupervisorError::ServerEnded { status }),
            request = requests.next() => {
                // A hint: the request is on its way into the stream.
                if let Some(request) = request
                    && let Err(error) = platform.wake_for(request.subject.as_str())
                {
                    break Err(error);
                }
            }
            Ok(()) = looks.changed() => {
                if let Err(error) = platform.scale() {
                    break Err(error);
                }
            }
            _ = look.tick() => {
                if let Err(error) = platform.look() {
                    break Err(error);
                }
            }
        }
    };
    platform.stop().await;
    outcome
}

async fn connect(options: &BusOptions) -> Result<Bus, SupervisorError> {
    let deadline = tokio::time::sleep(SERVER_START);
    tokio::pin!(deadline);
    loop {
        match bus::connect(options, "darkroom-up").await {
            Ok(bus) => return Ok(bus),
            Err(error) => tokio::select! {
                () = &mut deadline => return Err(SupervisorError::Unanswered(error)),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            },
        }
    }
}

/// Ends when somebody listens on a port of this machine.
async fn listens(port: u16) {
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
        tokio::time::sleep(LISTENS_EVERY).await;
    }
}

/// One child process, in a group of its own so that Ctrl-C reaches only us.
#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
}

impl Process {
    fn start(mut command: Command, program: &Path) -> Result<Self, SupervisorError> {
        for name in OF_OTHERS {
            command.env_remove(name);
        }
        let child = command
            .stdin(Stdio::null())
            // Standard output is for what scripts read.
            .stdout(std::io::stderr())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| SupervisorError::Start { program: program.to_owned(), source })?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        tracing::info!(name, pid = child.id(), "process.start");
        Ok(Self { name, child })
    }

    async fn ended(&mut self) -> std::process::ExitStatus {
        self.child.wait().await.unwrap_or_default()
    }

    fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn terminate(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    async fn stop(&mut self, grace: Duration) {
        if self.has_ended().is_some() {
            return;
        }
        self.terminate();
        if tokio::time::timeout(grace, self.child.wait()).await.is_err() {
            tracing::warn!(name = self.name, "process.kill");
            let _ = self.child.kill().await;
        }
    }
}

/// A function that should be running, and when it may be started again.
#[derive(Debug)]
struct Slot {
    process: Option<Process>,
    failures: u32,
    not_before: tokio::time::Instant,
}

impl Slot {
    fn new() -> Self {
        Self { process: None, failures: 0, not_before: tokio::time::Instant::from_std(now()) }
    }

    /// Notices an end; a bad one delays the next start.
    fn reap(&mut self) {
        let Some(status) = self.process.as_mut().and_then(Process::has_ended) else { return };
        let name = self.process.take().map_or_else(String::new, |process| process.name);
        if status.success() {
            self.failures = 0;
            tracing::info!(name, "process.end");
        } else {
            self.failures += 1;
            let delay = RESTART_AFTER * 2_u32.saturating_pow(self.failures - 1).min(60);
            self.not_before = tokio::time::Instant::from_std(now()) + delay;
            tracing::error!(name, %status, again_in_s = delay.as_secs(), "process.end");
        }
    }

    fn may_start(&self) -> bool {
        self.process.is_none() && self.not_before <= tokio::time::Instant::from_std(now())
    }
}

#[expect(clippy::disallowed_methods, reason = "restart delays are the shell's own")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Functions that cost next to nothing and run all the time.
const ALWAYS_ON: [&str; 3] = ["darkroom-deadletter", "darkroom-gateway", "darkroom-webhook"];
/// Receivers of webhooks may be on this machine, where all is the user's own.
const WEBHOOK_ALLOW: &str = "localhost,127.0.0.0/8,::1";

struct Platform<'a> {
    config: &'a Config,
    addresses: &'a Addresses,
    always_on: Vec<(&'static str, Slot)>,
    generate: BTreeMap<String, (PathBuf, Vec<Slot>)>,
    scaler: Scaler,
}

impl<'a> Platform<'a> {
    fn new(config: &'a Config, addresses: &'a Addresses, scaler: Scaler) -> Self {
        let slots = |directory: &PathBuf| (directory.clone(), (0..config.workers).map(|_| Slot::new()).collect());
        let generate =
            config.models.iter().map(|(directory, manifest)| (manifest.name.to_string(), slots(directory))).collect();
        let always_on = ALWAYS_ON.iter().map(|program| (*program, Slot::new())).collect();
        Self { config, addresses, always_on, generate, scaler }
    }

    fn start_always_on(&mut self) -> Result<(), SupervisorError> {
        for (program, slot) in &mut self.always_on {
            slot.reap();
            if slot.may_start() {
                let program = self.config.functions.join(*program);
                let mut command = Command::new(&program);
                command.arg("--nats").arg(&self.addresses.nats);
                // What a function does not know it does not read.
                command
                    .env("DARKROOM_STORE", &self.addresses.store)
                    .env("DARKROOM_HTTP_LISTEN", format!("127.0.0.1:{}", self.config.http_port))
                    .env("DARKROOM_HTTP_ORIGINS", "*")
                    .env("DARKROOM_OPEN_TENANT", "default")
                    .env("DARKROOM_CONSOLE_NATS", &self.addresses.websocket)
                    .env("DARKROOM_WEBHOOK_ALLOW", WEBHOOK_ALLOW)
                    .env("DARKROOM_GATEWAY_URL", &self.addresses.gateway);
                slot.process = Some(Process::start(command, &program)?);
            }
        }
        Ok(())
    }

    /// A request for a model was published: one worker at least must run.
    fn wake_for(&mut self, published: &str) -> Result<(), SupervisorError> {
        let (model, _) = subject::model_and_tenant_tokens(published);
        self.start_generate(model, 1)
    }

    fn look(&mut self) -> Result<(), SupervisorError> {
        self.start_always_on()?;
        self.scale()
    }

    /// Starts the workers that are missing.
    fn scale(&mut self) -> Result<(), SupervisorError> {
        let looks = Arc::clone(&self.scaler.looks().borrow());
        for (model, look) in looks.iter() {
            let Some((_, slots)) = self.generate.get_mut(model.as_str()) else { continue };
            slots.iter_mut().for_each(Slot::reap);
            let running = slots.iter().filter(|slot| slot.process.is_some()).count();
            let running = u32::try_from(running).unwrap_or(u32::MAX);
            let draining: u32 = look.draining.iter().sum();
            let said: u32 = look.running.iter().map(|running| running.ready).sum::<u32>() + draining;
            let wish = Wish {
                workers_max: Some(self.config.workers),
                starting: running.saturating_sub(said),
                ..Wish::default()
            };
            // What is on this machine is not taken away.
            if let Some(wanted) = self.scaler.wanted(model, Capacity::OnDemand, Some(wish)) {
                self.start_generate(model.as_str(), wanted.on_demand + draining)?;
            }
        }
        Ok(())
    }

    /// Starts workers until `wanted` run. Nothing is ever stopped here: idle workers end by themselves.
    fn start_generate(&mut self, model: &str, wanted: u32) -> Result<(), SupervisorError> {
        let Some((directory, slots)) = self.generate.get_mut(model) else { return Ok(()) };
        slots.iter_mut().for_each(Slot::reap);
        let running = slots.iter().filter(|slot| slot.process.is_some()).count();
        let missing = (wanted as usize).saturating_sub(running);
        for slot in slots.iter_mut().filter(|slot| slot.may_start()).take(missing) {
            let program = self.config.functions.join("darkroom-generate");
            let mut command = Command::new(&program);
            command
                .arg("--nats")
                .arg(&self.addresses.nats)
                .arg("--store")
                .arg(&self.addresses.store)
                .arg("--model")
                .arg(&*directory)
                .args(["--grace", WORKER_GRACE])
                .arg("--exit-when-idle")
                .arg(format!("{}ms", self.config.idle.as_millis()));
            slot.process = Some(Process::start(command, &program)?);
        }
        Ok(())
    }

    /// Ends all functions, side by side.
    async fn stop(&mut self) {
        let generate = self.generate.values_mut().flat_map(|(_, slots)| slots.iter_mut());
        let all =
            generate.chain(self.always_on.iter_mut().map(|(_, slot)| slot)).filter_map(|slot| slot.process.as_mut());
        futures_util::future::join_all(all.map(|process| process.stop(STOP_GRACE))).await;
    }
}
