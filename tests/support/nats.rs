//! A real nats-server of the test's own, on free ports of loopback and with a store of its own.
//!
//! And one that only pretends, for what a test cannot get as a real one: an old version.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::process::Tethered;
use super::{LOOK_EVERY, checkout, eventually};

/// How long a server may take until it answers; recovery of a store included.
const START: Duration = Duration::from_secs(30);
/// Two tests may choose the same port between the look and the bind.
const PORT_ATTEMPTS: u32 = 10;

/// The nats-server program, installed if need be.
///
/// # Panics
/// If `local/nats-server` cannot find or install one.
pub(crate) fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let output = Command::new(checkout().join("local/nats-server"))
            .arg("--path")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("local/nats-server can be run");
        assert!(output.status.success(), "local/nats-server --path: {}", output.status);
        PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim_end())
    };
    PROGRAM.get_or_init(find).clone()
}

/// A port that is free together with the one after it.
///
/// Below the range that the kernel takes outgoing ports from: a client that tries to reconnect to a port of that range
/// can meet itself there, and then the server cannot come back.
pub(crate) fn free_port_pair() -> u16 {
    loop {
        // Each hasher of the standard library has fresh keys: the one source of randomness that is always there.
        let random = RandomState::new().build_hasher().finish();
        let port = 20_000 + u16::try_from(random % 6_000).expect("below 6000") * 2;
        if [port, port + 1].into_iter().all(|port| StdTcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return port;
        }
    }
}

/// A running nats-server with `nats/local.conf`. Killed when dropped.
#[derive(Debug)]
pub(crate) struct NatsServer {
    directory: TempDir,
    port: u16,
    arguments: Vec<&'static str>,
    process: Option<Tethered>,
}

impl NatsServer {
    /// Starts one with an empty store and waits until it answers.
    ///
    /// # Panics
    /// If it does not, with its log.
    pub(crate) async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    /// As [`Self::start`], of a server that somebody forgot to give JetStream.
    ///
    /// # Panics
    /// As there.
    pub(crate) async fn start_without_jetstream() -> Self {
        Self::start_with(vec!["--jetstream=false"]).await
    }

    async fn start_with(arguments: Vec<&'static str>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut server = Self { directory, port: 0, arguments, process: None };
        for _ in 0..PORT_ATTEMPTS {
            server.port = free_port_pair();
            if server.launch().await {
                return server;
            }
        }
        panic!("the nats-server does not start\n{}", server.log());
    }

    /// For NATS clients.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// For browsers.
    pub(crate) fn websocket_url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port + 1)
    }

    /// The port of [`Self::url`]; the one after it is that of [`Self::websocket_url`].
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL; it is gone when this returns.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops it where it is: connections stay open and nothing answers.
    pub(crate) fn pause(&self) {
        self.process.as_ref().expect("the server runs").signal(Signal::STOP);
    }

    /// Undoes [`Self::pause`].
    pub(crate) fn resume(&self) {
        self.process.as_ref().expect("the server runs").signal(Signal::CONT);
    }

    /// Starts it again on the same ports and store, after SIGKILL if it still runs, and waits until it answers.
    ///
    /// # Panics
    /// If it does not, with its log.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        assert!(self.launch().await, "the nats-server does not start again\n{}", self.log());
    }

    /// What it said since the first start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Starts the process and waits until it answers; false if it ended instead.
    async fn launch(&mut self) -> bool {
        let log = self.directory.path().join("log");
        let log = OpenOptions::new().create(true).append(true).open(log).expect("the log can be written");
        // The server reads the value as configuration: quoted, any path is one value.
        let store = self.directory.path().join("store").display().to_string();
        let store = format!("\"{}\"", store.replace('\\', "\\\\").replace('"', "\\\""));
        let mut command = Command::new(program());
        command
            .arg("-c")
            .arg(checkout().join("nats/local.conf"))
            .args(&self.arguments)
            .env("DARKROOM_NATS_PORT", self.port.to_string())
            .env("DARKROOM_NATS_WEBSOCKET_PORT", (self.port + 1).to_string())
            .env("DARKROOM_NATS_STORE", store)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle"))
            .stderr(log);
        let mut process = Tethered::start(&mut command, Duration::ZERO).expect("the nats-server can be started");
        let ready = timeout(START, async {
            loop {
                // Another server may answer on a port that ours could not get.
                if process.ended().is_some() {
                    return false;
                }
                if answers(self.port).await && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port + 1)).await.is_ok() {
                    return process.ended().is_none();
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        let ready = ready.await.unwrap_or(false);
        if ready {
            self.process = Some(process);
        }
        ready
    }
}

/// Whether a NATS server answers a PING there.
async fn answers(port: u16) -> bool {
    let exchange = async {
        let mut stream = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?);
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        stream.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").await.ok()?;
        while line.trim_end() != "PONG" {
            line.clear();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
        }
        Some(())
    };
    matches!(timeout(Duration::from_secs(1), exchange).await, Ok(Some(())))
}

/// Waits until nothing listens on a port any more.
///
/// # Panics
/// If something still does after `deadline`.
pub(crate) async fn port_is_free(port: u16, deadline: Duration) {
    eventually("the port is free", deadline, async || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err().then_some(())
    })
    .await;
}

/// What looks like a nats-server to a client that connects, pings and asks, and knows nothing. Gone when dropped.
#[derive(Debug)]
pub(crate) struct FakeNatsServer {
    port: u16,
    task: JoinHandle<()>,
}

impl FakeNatsServer {
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for FakeNatsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that says it is nats-server 2.9.0 with JetStream, and answers requests as if nobody did.
pub(crate) async fn fake_old_server() -> FakeNatsServer {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("a bound socket").port();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            // A client that hangs up in between is none of our business.
            connections.spawn(async move {
                let _ = pretend(stream, port).await;
            });
        }
    });
    FakeNatsServer { port, task }
}

async fn pretend(stream: TcpStream, port: u16) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let info = format!(
        "INFO {{\"server_id\":\"NFAKE\",\"server_name\":\"old\",\"version\":\"2.9.0\",\"proto\":1,\"go\":\"go1.19\",\
         \"host\":\"127.0.0.1\",\"port\":{port},\"headers\":true,\"max_payload\":1048576,\"jetstream\":true,\
         \"client_id\":1,\"client_ip\":\"127.0.0.1\"}}\r\n"
    );
    stream.write_all(info.as_bytes()).await?;
    let mut subscriptions: HashMap<String, String> = HashMap::new();
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let tokens: Vec<&str> = line.split_ascii_whitespace().collect();
        match tokens.as_slice() {
            ["PING"] => stream.write_all(b"PONG\r\n").await?,
            ["SUB", subject, .., sid] => {
                subscriptions.insert((*sid).to_owned(), (*subject).to_owned());
            }
            ["PUB" | "HPUB", rest @ ..] => {
                let length = rest.last().and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
                // PUB <subject> [reply] <bytes>; HPUB has the bytes of the headers before them.
                let reply = rest.get(1).filter(|_| rest.len() == if tokens[0] == "PUB" { 3 } else { 4 });
                let answers: Vec<String> = reply
                    .into_iter()
                    .flat_map(|reply| {
                        let sids = subscriptions.iter().filter(|(_, subject)| matches(subject, reply));
                        let headers = "NATS/1.0 503\r\n\r\n";
                        sids.map(move |(sid, _)| format!("HMSG {reply} {sid} {0} {0}\r\n{headers}\r\n", headers.len()))
                    })
                    .collect();
                stream.read_exact(&mut vec![0; length + 2]).await?;
                stream.write_all(answers.concat().as_bytes()).await?;
            }
            _ => {}
        }
    }
}

/// Whether a subscription to `pattern` gets what is published to `subject`.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(token)) if expected == token => {}
            _ => return false,
        }
    }
}
